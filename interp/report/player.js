"use strict";
// Sorting of the concept table, and the replay of recorded windows.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
      const order = Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
      return down ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}

const source = document.getElementById("player-data");
if (source) startPlayer(JSON.parse(source.textContent));

function startPlayer(windows) {
  const find = (id) => document.getElementById(id);
  const board = find("board"), strip = find("strip"), scrub = find("scrub"), play = find("play");
  const colours = { wall: "#4a5568", mine: "#975a16", generator: "#2b6cb0", altar: "#6b46c1", turret: "#c53030", lasery: "#b83280", armory: "#2f855a" };
  const spare = ["#2c7a7b", "#702459", "#744210", "#22543d"];
  const teams = ["#dd6b20", "#3182ce", "#38a169", "#805ad5"];
  const colourOf = (w, kind) => colours[w.objects[kind]] ?? spare[kind % spare.length];
  let w = windows[0], at = 0, timer = null;

  function drawBoard() {
    const context = board.getContext("2d");
    const rows = w.map.length, cols = w.map[0].length, cell = board.width / Math.max(rows, cols);
    context.fillStyle = "#fff"; context.fillRect(0, 0, board.width, board.height);
    context.textAlign = "center"; context.textBaseline = "middle";
    for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) {
      const kind = w.map[row][col];
      context.fillStyle = kind ? colourOf(w, kind) : (row + col) % 2 ? "#f7fafc" : "#f1f5f9";
      context.fillRect(col * cell, row * cell, cell, cell);
      if (kind && w.objects[kind] !== "wall") {
        context.fillStyle = "#fff"; context.font = `bold ${cell * 0.6}px system-ui, sans-serif`;
        context.fillText(w.objects[kind][0].toUpperCase(), (col + 0.5) * cell, (row + 0.54) * cell);
      }
    }
    const centre = (position) => [(position[1] + 0.5) * cell, (position[0] + 0.5) * cell];
    context.lineWidth = cell * 0.12; context.strokeStyle = "rgba(221,107,32,.55)"; context.lineJoin = "round"; context.beginPath();
    for (let step = Math.max(0, at - 12); step <= at; step++) context.lineTo(...centre(w.position[step][w.agent]));
    context.stroke();
    w.position[at].forEach((position, agent) => {
      const [x, y] = centre(position);
      context.beginPath(); context.arc(x, y, cell * 0.36, 0, 2 * Math.PI);
      context.fillStyle = teams[w.team[agent] % teams.length]; context.fill();
      if (agent === w.agent) {
        context.lineWidth = cell * 0.13; context.strokeStyle = "#1a202c"; context.beginPath();
        context.arc(x, y, cell * 0.47, 0, 2 * Math.PI); context.stroke();
      }
    });
  }

  function drawStrip() {
    const context = strip.getContext("2d"), high = Math.max(1e-6, ...w.latent), num = w.t.length;
    const x = (step) => 10 + (strip.width - 20) * (num > 1 ? step / (num - 1) : 0.5);
    const y = (value) => 118 - 96 * value / high;
    context.fillStyle = "#fff"; context.fillRect(0, 0, strip.width, strip.height);
    context.fillStyle = "#c6e6d2";
    w.truth.forEach((holds, step) => { if (holds) context.fillRect(x(step - 0.5), 124, x(1) - x(0) + 0.5, 16); });
    context.strokeStyle = "#cbd5e0"; context.lineWidth = 1; context.strokeRect(10, 124, strip.width - 20, 16);
    context.strokeStyle = "#2b6cb0"; context.lineWidth = 3; context.lineJoin = "round"; context.beginPath();
    w.latent.forEach((value, step) => context.lineTo(x(step), y(value)));
    context.stroke();
    context.strokeStyle = "#1a202c"; context.lineWidth = 2; context.beginPath();
    context.moveTo(x(at), 12); context.lineTo(x(at), 142); context.stroke();
    context.fillStyle = "#4a5568"; context.font = "15px system-ui, sans-serif"; context.textAlign = "left"; context.textBaseline = "top";
    context.fillText(`latent, peak ${high.toFixed(2)}; shaded: ${w.label}`, 12, 2);
  }

  function show(step) {
    at = Math.max(0, Math.min(w.t.length - 1, step));
    scrub.value = at;
    scrub.setAttribute("aria-valuetext", `step ${w.t[at]}`);
    const carried = w.resources.map((name, index) => [name, w.inventory[at][index]]).filter(([, amount]) => amount);
    find("status").textContent =
      `Step ${w.t[at]} · latent ${w.latent[at].toFixed(3)} · ${w.label}: ${w.truth[at] ? "yes" : "no"} · action ${w.action[at]}` +
      (w.reward[at] ? ` · reward ${w.reward[at].toFixed(2)}` : "") +
      ` · carries ${carried.map(([name, amount]) => `${amount} ${name}`).join(", ") || "nothing"}`;
    drawBoard(); drawStrip();
  }

  function stop() {
    clearInterval(timer); timer = null;
    play.textContent = "Play"; play.setAttribute("aria-pressed", "false");
  }

  function start() {
    if (at >= w.t.length - 1) show(0);
    timer = setInterval(() => { if (at >= w.t.length - 1) stop(); else show(at + 1); }, 1000 / Number(find("speed").value));
    play.textContent = "Pause"; play.setAttribute("aria-pressed", "true");
  }

  function choose(index) {
    stop();
    w = windows[index];
    scrub.max = w.t.length - 1;
    find("legend").replaceChildren(...w.objects.map((name, kind) => [name, kind]).filter(([, kind]) => kind).map(([name, kind]) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.style.background = colourOf(w, kind);
      swatch.textContent = name === "wall" ? "" : name[0].toUpperCase();
      item.append(swatch, name);
      return item;
    }));
    show(w.t.indexOf(w.peak));
  }

  play.addEventListener("click", () => (timer ? stop() : start()));
  scrub.addEventListener("input", () => { stop(); show(Number(scrub.value)); });
  find("speed").addEventListener("change", () => { if (timer) { stop(); start(); } });
  find("pick").addEventListener("change", (event) => choose(Number(event.target.value)));
  choose(0);
}
