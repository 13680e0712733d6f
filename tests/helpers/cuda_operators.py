"""What is known of ATen's operators on CUDA: which wait, which start no kernel, which take tensors of two devices."""

import functools

import torch

# Operators whose kernels read a number back to the host (ATen/native/cuda, and callers of cuDNN and cuSOLVER).
WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::equal", "aten::is_nonzero", "aten::bincount",
    "aten::_linalg_eigh", "aten::_linalg_svd", "aten::linalg_eig", "aten::_linalg_check_errors", "aten::histc",
    "aten::repeat_interleave.Tensor", "aten::allclose", "aten::linalg_lstsq",
}  # fmt: skip
TWO_DEVICES = {"aten::_to_copy", "aten::copy_", "aten::_foreach_copy_", "aten::index", "aten::index_put",
               "aten::index_put_", "aten::_index_put_impl_", "aten::_has_compatible_shallow_copy_type"}  # fmt: skip
SCALARS_FROM_HOST = ("aten::_foreach", "aten::fill", "aten::_amp", "aten::where", "aten::index_put", "aten::lift")
EMPTY = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
NO_KERNEL = EMPTY | {"aten::detach", "aten::alias", "aten::_unsafe_view", "aten::_reshape_alias"}
LOOK_UPS = {"aten::index", "aten::index_select", "aten::gather", "aten::embedding"}  # read what they return
ASSIGNMENTS = {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
MASKS = (torch.bool, torch.uint8)
HALVES = (torch.float16, torch.bfloat16)


@functools.cache
def has_cuda_kernel(func):
    """Whether this build of torch has a CUDA kernel of the operator; a build for CPUs cannot say, and says yes."""
    if torch.version.cuda is None:
        return True
    name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    has = torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA")
    return has or torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def is_view(func):
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)


def map_tensors(function, x):
    """x with the function applied to each tensor in its lists, tuples and dicts: what operators take and return.

    torch's own `tree_map` does more, and takes most of the time that the device takes.
    """
    if isinstance(x, torch.Tensor):
        return function(x)
    if type(x) in (list, tuple):
        return type(x)([map_tensors(function, y) for y in x])
    return {key: map_tensors(function, y) for key, y in x.items()} if type(x) is dict else x


def tensors_in(x):
    """The tensors in lists, tuples and dicts."""
    found = []
    map_tensors(found.append, x)
    return found
