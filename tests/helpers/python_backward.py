"""Tensor.backward and torch.autograd.grad in Python, for devices that torch's engine would ask for their drivers."""

from collections import Counter, defaultdict

import torch
from torch.autograd.graph import get_gradient_edge


def backward(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    """Tensor.backward, without hooks and without gradients of gradients."""
    assert inputs is None
    assert not create_graph
    _run([self], [gradient], [])


def grad(outputs, inputs, grad_outputs=None, allow_unused=False):
    """torch.autograd.grad, without hooks; None where an output does not depend on an input, which depend on no other.

    outputs, inputs: sequences of tensors. grad_outputs: a gradient for each output; None for ones.
    """
    found = _run(outputs, grad_outputs or [None] * len(outputs), [get_gradient_edge(x) for x in inputs])
    assert allow_unused or all(g is not None for g in found), "an output does not depend on an input"
    return tuple(found)


def _run(outputs, given, wanted):
    """The gradients at the edges `wanted`, where the walk ends; if there are none, leaves accumulate theirs.

    outputs: where the walk begins. given: their gradients, None for ones.
    """
    roots, ends = [get_gradient_edge(x) for x in outputs], {edge.node for edge in wanted}
    needs, gradients, found = _edges_into({root.node for root in roots}, ends), defaultdict(dict), {}
    for root, output, value in zip(roots, outputs, given, strict=True):
        _add(gradients[root.node], root.output_nr, torch.ones_like(output) if value is None else value)
    ready = [node for node in gradients if not needs[node]]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            sums = gradients.pop(node, {})  # number of its output -> gradient
            sums = [_fitting(sums.get(i), meta, node) for i, meta in enumerate(node._input_metadata)]
            if node in ends:
                found |= {(node, i): value for i, value in enumerate(sums)}
                continue
            if _is_leaf(node):
                if not wanted:
                    _accumulate(node, *sums)
                continue
            for following, number, value in _apply(node, sums):
                # That of a bias has rows, of which two uses may have unequally many.
                _add(gradients[following], number, _fitting(value, following._input_metadata[number], following))
                needs[following] -= 1
                if not needs[following]:
                    ready.append(following)
    return [found.get((edge.node, edge.output_nr)) for edge in wanted]


def _edges_into(roots, ends):
    """Node -> how many edges lead to it from the roots, where the walk ends at `ends`."""
    count, stack, seen = Counter(), list(roots), set(roots)
    while stack:
        top = stack.pop()
        for node in (n for n, _ in top.next_functions if n is not None and top not in ends):
            count[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return count


def _apply(node, sums):
    """(following node, number of its output, gradient or None) of each edge that leaves the node."""
    outs = node.apply(*sums) if hasattr(node, "apply") else node(*sums)
    outs = outs if isinstance(outs, tuple) else (outs,)
    uses = Counter(id(value) for value in (*outs, *sums) if value is not None)
    edges = []
    for (following, number), value in zip(node.next_functions, outs, strict=False):
        if following is not None:
            shared = _is_leaf(following) and uses[id(value)] > 1
            shared = shared and tuple(following._input_metadata[0].shape) == tuple(value.shape)
            edges.append((following, number, value.clone() if shared else value))  # a leaf's gradient is its own
    return edges


def _is_leaf(node):
    return node.name().endswith("AccumulateGrad")


def _accumulate(node, value):
    """Add to the gradient of a leaf; as torch's engine does, the first becomes the leaf's without a copy."""
    leaf = node.variable
    if leaf.grad is None and value is not None and value.stride() == leaf.stride():
        leaf.grad = value.detach()
    else:
        node(value)


def _add(sums, number, value):
    if value is not None:
        sums[number] = value if number not in sums else sums[number] + value


def _fitting(grad, meta, node):
    """The gradient in the shape and dtype of what it belongs to, as torch's engine makes it."""
    if grad is None:
        return None
    if grad.device != meta.device:
        raise RuntimeError(f"{node.name()}: expected a gradient on {meta.device}, got one on {grad.device}")
    if tuple(grad.shape) != tuple(meta.shape):
        grad = grad.sum_to_size(tuple(meta.shape))
    return grad if grad.dtype == meta.dtype else grad.to(meta.dtype)
