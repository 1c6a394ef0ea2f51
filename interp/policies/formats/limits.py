"""How much a policy file may claim: compared with these, or with the file's own size, before memory is spent."""

MIB = 1 << 20

MAX_FILE_BYTES = 4096 * MIB
"""Of one policy file, or of all files of a folder."""
MAX_EXPANSION = 20
"""Uncompressed bytes of a zip per byte of it. Weights compress by a tenth; a bomb by a thousand."""
FREE_EXPANSION_BYTES = 16 * MIB
"""A zip may always grow to this much."""
MAX_MEMBERS = 20_000
"""Files of a zip or folder; a torch file has one per tensor."""
MAX_FOLDER_DEPTH = 16
MAX_PICKLE_BYTES = 64 * MIB
"""Of the pickle in a torch file, which holds no weights."""
MAX_PICKLE_WORK = 2_000_000
"""Steps of a pickle: operations, and the elements that they copy. The largest seed-era record takes 12,000."""
MAX_JSON_BYTES = 16 * MIB
"""Of a JSON member or a safetensors header."""
MAX_TEXT_BYTES = MIB // 4
"""Of an architecture written as a Python call, and of one string in the metadata."""
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16
MAX_COPIES = 4
"""Bytes of all tensors per byte of the storages that they view: tied weights are two views of one storage."""
MAX_NAME_CHARS = 300
MAX_VISITS = 200_000
"""Objects looked at in the search for tensors and metadata."""
MAX_DEPTH = 64
"""Of modules within modules, and of metadata."""
