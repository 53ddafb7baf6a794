"""How much a file may ask for before it is refused: every bound on input that is not trusted.

Each is far above what our own commands write and far below what would exhaust a small machine.
"""

MAX_MANIFEST_BYTES = 8 * 2**20
MAX_JSON_DEPTH = 32
"""Nested arrays and objects, in any JSON file that is read."""

MAX_FILES = 4096
"""Files (and folders) of one bundle."""
MAX_PATH_CHARS = 512
"""Length of a file's path inside a bundle."""

MAX_ONNX_BYTES = 32 * 2**20
"""Size of one .onnx file without its external data: more than a graph of 100,000 nodes has. Hostile
bytes grow 55 times when they are parsed."""
MAX_ONNX_PARTS = 4_000_000
"""Nodes, attributes, tensors and names in one .onnx file."""
MAX_ONNX_STRING_CHARS = 4096
"""Names, operator types, domains and external-data entries of an .onnx file."""
MAX_ONNX_DEPTH = 24
"""Nested subgraphs; protobuf's parsers give up at 100 nested messages, three to a subgraph."""
MAX_ONNX_TENSORS = 256
"""Inputs, and outputs, of a graph."""
MAX_ONNX_DIMS = 16
MAX_ONNX_DIM_LENGTH = 128
"""Characters of a symbolic dim, such as `4*num_n + 4`."""
MAX_ONNX_OPERATORS = 1024
"""Different operator types, and different operator domains, of one .onnx file."""
MAX_ONNX_NODES = 100_000
"""Nodes of one .onnx file, subgraphs included."""
MAX_ONNX_NAME_CHARS = 2**25
"""Names of tensors of one .onnx file, together: they are kept until types are told."""
MAX_EXTERNAL_TENSORS = 100_000
"""Tensors of one .onnx file that lie in external data files."""

MAX_BATCH = 4096
"""Frames, expressions and words that a graph may claim to take at once."""

MAX_EXPRESSION_FILE_BYTES = 256 * 2**20
"""Size of the `meta_expressions.json` of a data set."""
MAX_NAME_BYTES = 200
"""Names of videos, frames and expressions; file systems take 255, and results add a suffix."""

MAX_EXPRESSION_CHARACTERS = 4096
"""Longest expression that is looked at; none of 64 tokens comes near it."""
MAX_STATE_BYTES = 64 * 2**20
"""Size of a saved session. A token is 1 KiB: far more than any session holds."""
MAX_TEXT_HEADER_BYTES = 128 * 2**10
"""What a kept text embedding may have besides its tensors: the longest expression, escaped twice,
fits."""

MAX_IMAGE_SIZE = 8192
"""Edge in pixels of the square that a bundle's image encoder takes."""
MAX_LIVE_FPS = 240.0
"""Frames per second that a live source may claim; beyond it the rate is taken for unknown."""
MAX_FRAME_PIXELS = 64_000_000
"""Pixels of one frame or mask, 183 MiB of RGB: beyond it a file is taken for a bomb."""
