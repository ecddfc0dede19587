"""The operators that `pullback` adds to PyTorch's: nodes that hold graphs, and products with their derivatives.

`key` is a number from `keys.py`.  What they do is registered where it is known: `user_functions.py`, `own_products.py`,
`control_flow.py`, `region_products.py`.
"""

import torch

LIBRARY = torch.library.Library("pullback", "DEF")

# A function with a derivative of its own: its results, as they are.
LIBRARY.define("attach(Tensor[] values, Tensor[] inputs, Tensor[] saved, int key) -> Tensor[]")
LIBRARY.define("own_pull(Tensor cotangent, Tensor[] saved, int key, int output, int operand) -> Tensor")
LIBRARY.define("own_pulls(Tensor[] cotangents, Tensor[] saved, int key) -> Tensor[]")
LIBRARY.define("own_push(Tensor tangent, Tensor[] saved, int key, int output, int operand) -> Tensor")

# Branches and loops.
LIBRARY.define("cond(Tensor[] operands, int key) -> Tensor[]")
LIBRARY.define("while_loop(Tensor[] operands, int key) -> Tensor[]")
LIBRARY.define("scan(Tensor[] operands, int key) -> Tensor[]")
LIBRARY.define("region_pull(Tensor cotangent, Tensor[] operands, int key, int output, int operand) -> Tensor")
LIBRARY.define("region_pulls(Tensor[] cotangents, Tensor[] operands, int key) -> Tensor[]")
LIBRARY.define("region_push(Tensor tangent, Tensor[] operands, int key, int output, int operand) -> Tensor")
