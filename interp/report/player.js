"use strict";
// Sorting of the concept table, and the replay of recorded windows.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const isNumber = head.classList.contains("n");
    const compare = (a, b) => {
      if (!isNumber) return (down ? -1 : 1) * value(a).localeCompare(value(b));
      const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // what was not measured comes last
      return down ? y - x : x - y;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}

const source = document.getElementById("player-data");
if (source) startPlayer(JSON.parse(source.textContent));

function startPlayer(windows) {
  const find = (id) => document.getElementById(id);
  const board = find("board"), twin = find("twin"), strip = find("strip"), scrub = find("scrub"), play = find("play");
  const colours = { wall: "#4a5568", mine: "#975a16", generator: "#2b6cb0", altar: "#6b46c1", turret: "#c53030", lasery: "#b83280", armory: "#2f855a" };
  const spare = ["#2c7a7b", "#702459", "#744210", "#22543d"];
  const teams = ["#dd6b20", "#3182ce", "#38a169", "#805ad5"];
  const colourOf = (w, kind) => colours[w.objects[kind]] ?? spare[kind % spare.length];
  const teamOf = (agent) => teams[w.team[agent] % teams.length];
  const textColour = "#4a5568";
  let w = windows[0], at = 0, timer = null;

  function drawBoards() {
    drawBoard(board, w);
    twin.hidden = !w.twin;
    if (w.twin) drawBoard(twin, w.twin);
  }

  function drawBoard(board, w) {
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
    const trail = w.position.slice(Math.max(0, at - 16), at + 1).map((agents) => centre(agents[w.agent]));
    context.lineWidth = cell * 0.14; context.lineCap = "round"; context.strokeStyle = teamOf(w.agent);
    trail.slice(1).forEach((point, step) => {
      context.globalAlpha = 0.15 + 0.6 * (step + 1) / trail.length;
      context.beginPath(); context.moveTo(...trail[step]); context.lineTo(...point); context.stroke();
    });
    context.globalAlpha = 1;
    w.position[at].forEach((position, agent) => {
      const [x, y] = centre(position);
      context.beginPath(); context.arc(x, y, cell * 0.36, 0, 2 * Math.PI);
      context.fillStyle = teamOf(agent); context.fill();
      context.lineWidth = cell * 0.06; context.strokeStyle = "#fff"; context.stroke();
      if (agent === w.agent) {
        context.lineWidth = cell * 0.13; context.strokeStyle = "#1a202c"; context.beginPath();
        context.arc(x, y, cell * 0.47, 0, 2 * Math.PI); context.stroke();
      }
    });
  }

  function drawStrip() {
    // Drawn in the pixels of the screen, so that its text is as large on a phone as on a desk.
    const ratio = window.devicePixelRatio || 1, width = strip.clientWidth || 640, whole = w.whole ?? [];
    const height = whole.length > w.t.length ? 222 : 170;
    strip.width = Math.round(width * ratio); strip.height = Math.round(height * ratio); strip.style.height = `${height}px`;
    const context = strip.getContext("2d"), num = w.t.length;
    const high = Math.max(1e-6, ...w.latent, ...(w.twin ? w.twin.latent : [])), left = 46, right = width - 12, top = 26, bottom = 112;
    const pitch = (right - left) / Math.max(1, num - 1);
    const x = (step) => left + pitch * step, y = (value) => bottom - (bottom - top) * value / high;
    context.scale(ratio, ratio);
    context.fillStyle = "#fff"; context.fillRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif"; context.lineWidth = 1;
    for (const value of [0, high]) {
      context.strokeStyle = "#e2e8f0"; context.beginPath(); context.moveTo(left, y(value)); context.lineTo(right, y(value)); context.stroke();
      context.fillStyle = textColour; context.textAlign = "right"; context.textBaseline = "middle"; context.fillText(value ? value.toPrecision(3) : "0", left - 6, y(value));
    }
    w.truth.forEach((holds, step) => {
      if (!holds) return;
      const from = Math.max(left, x(step) - pitch / 2), to = Math.min(right, x(step) + pitch / 2);
      context.fillStyle = "rgba(47,133,90,.10)"; context.fillRect(from, top, to - from, bottom - top);
      context.fillStyle = "#68b58b"; context.fillRect(from, 120, to - from + 0.6, 12);
    });
    context.strokeStyle = "#a0aec0"; context.strokeRect(left, 120, right - left, 12);
    context.fillStyle = textColour; context.textBaseline = "top"; context.textAlign = "left";
    context.fillText(w.twin ? `latent ${w.number}, unedited and ${w.arm} (dashed); they part at step ${w.peak}` : `latent ${w.number}, peak at step ${w.peak}`, left, 6);
    context.fillText("label", 8, 120); context.fillText(`step ${w.t[0]}`, left, 144);
    context.textAlign = "right"; context.fillText(`step ${w.t[num - 1]}`, right, 144);
    context.strokeStyle = "#2b6cb0"; context.lineWidth = 2; context.lineJoin = "round"; context.beginPath();
    w.latent.forEach((value, step) => context.lineTo(x(step), y(Math.max(0, value))));
    context.stroke();
    if (w.twin) {
      context.strokeStyle = "#c05621"; context.setLineDash([5, 4]); context.beginPath();
      w.twin.latent.forEach((value, step) => context.lineTo(x(step), y(Math.max(0, value))));
      context.stroke(); context.setLineDash([]);
    }
    context.strokeStyle = "#1a202c"; context.lineWidth = 1.5; context.beginPath();
    context.moveTo(x(at), top - 4); context.lineTo(x(at), 136); context.stroke();
    context.fillStyle = "#1a202c"; context.beginPath(); context.arc(x(at), y(w.latent[at]), 4, 0, 2 * Math.PI); context.fill();
    if (whole.length > num) drawWhole(context, whole, left, right);
  }

  function drawWhole(context, whole, left, right) {
    // The whole episode, so that a peak is seen beside all that was no peak.
    const top = 168, bottom = 202, high = Math.max(1e-6, ...whole), pitch = (right - left) / (whole.length - 1);
    const x = (step) => left + pitch * step;
    context.fillStyle = "rgba(43,108,176,.14)"; context.fillRect(x(w.t[0]), top, Math.max(2, pitch * (w.t.length - 1)), bottom - top);
    context.fillStyle = "#68b58b";
    w.wholeTruth.forEach((holds, step) => { if (holds) context.fillRect(x(step) - pitch / 2, bottom + 2, pitch + 0.6, 4); });
    context.strokeStyle = "#2b6cb0"; context.lineWidth = 1; context.beginPath();
    whole.forEach((value, step) => context.lineTo(x(step), bottom - (bottom - top) * Math.max(0, value) / high));
    context.stroke();
    context.strokeStyle = "#1a202c"; context.beginPath(); context.moveTo(x(w.t[at]), top); context.lineTo(x(w.t[at]), bottom + 6); context.stroke();
    context.fillStyle = textColour; context.textBaseline = "top"; context.textAlign = "left"; context.fillText("all", 8, top + 8);
    context.fillText("step 0", left, bottom + 8); context.textAlign = "right"; context.fillText(`step ${whole.length - 1}`, right, bottom + 8);
  }

  function element(tag, text, className = "") {
    const made = document.createElement(tag);
    made.textContent = text; made.className = className;
    return made;
  }

  function both(value) {
    return w.twin ? `${value(w)} | ${value(w.twin)}` : value(w);
  }

  function describe() {
    const carried = w.resources.map((name, index) => `${w.inventory[at][index]} ${name}`).filter((_, index) => w.inventory[at][index]);
    const facts = [["step", w.t[at]], ["latent", w.latent[at].toFixed(3)], [w.label, w.truth[at] ? "yes" : "no"], ["action", both((one) => one.action[at])],
      ["reward", both((one) => one.reward[at].toFixed(2))], ["carries", carried.join(" · ") || "nothing"]];
    find("status").replaceChildren(...facts.map(([name, value]) => {
      const fact = element("div", "", name === "carries" ? "wide" : "");
      fact.append(element("dt", name), element("dd", value));
      return fact;
    }));
  }

  function show(step) {
    at = Math.max(0, Math.min(w.t.length - 1, step));
    scrub.value = at;
    scrub.setAttribute("aria-valuetext", `step ${w.t[at]}`);
    describe();
    drawBoards(); drawStrip();
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
    const items = w.objects.map((name, kind) => [name, kind]).filter(([, kind]) => kind && w.map.some((row) => row.includes(kind))).map(([name, kind]) => [
      colourOf(w, kind), name === "wall" ? "" : name[0].toUpperCase(), name, ""]);
    for (const team of [...new Set(w.team)].sort((a, b) => a - b)) items.push([teams[team % teams.length], "", `agent, team ${team}`, "agent"]);
    items.push([teamOf(w.agent), "", `agent ${w.agent}, in focus`, "agent ring"]);
    find("legend").replaceChildren(...items.map(([colour, letter, name, className]) => {
      const item = element("li", ""), swatch = element("span", letter, className);
      swatch.style.background = colour;
      item.append(swatch, name);
      return item;
    }));
    show(w.t.indexOf(w.peak));
  }

  play.addEventListener("click", () => (timer ? stop() : start()));
  scrub.addEventListener("input", () => { stop(); show(Number(scrub.value)); });
  find("speed").addEventListener("change", () => { if (timer) { stop(); start(); } });
  find("pick").addEventListener("change", (event) => choose(Number(event.target.value)));
  board.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { stop(); show(at + move); }
    else if (event.key === " ") play.click();
    else return;
    event.preventDefault();
  });
  window.addEventListener("resize", drawStrip);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) find("speed").value = "2";
  choose(0);
}
