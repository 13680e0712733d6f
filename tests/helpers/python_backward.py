"""Tensor.backward in Python, for devices that the engine of torch does not know: it would ask their drivers."""

from collections import Counter, defaultdict

import torch


def backward(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    """Tensor.backward, without hooks and without gradients of gradients."""
    assert inputs is None
    assert not create_graph
    root = torch.autograd.graph.get_gradient_edge(self)
    needs, stack, seen = Counter(), [root.node], {root.node}
    while stack:
        for node in (n for n, _ in stack.pop().next_functions if n is not None):
            needs[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    gradients = defaultdict(dict)  # node -> number of its output -> gradient
    gradients[root.node][root.output_nr] = torch.ones_like(self) if gradient is None else gradient
    ready = [root.node]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = gradients.pop(node)
            given = [_fitting(given.get(i), meta, node) for i, meta in enumerate(node._input_metadata)]
            outs = node.apply(*given) if hasattr(node, "apply") else node(*given)
            outs = outs if isinstance(outs, tuple) else (outs,)
            for (following, number), grad in zip(node.next_functions, outs, strict=False):
                if following is None:
                    continue
                if grad is not None:  # that of a bias has rows, of which two uses may have unequally many
                    grad = _fitting(grad, following._input_metadata[number], following)
                    before = gradients[following].get(number)
                    gradients[following][number] = grad if before is None else before + grad
                needs[following] -= 1
                if not needs[following]:
                    ready.append(following)


def _fitting(grad, meta, node):
    """The gradient in the shape and dtype of what it belongs to, as torch's engine makes it."""
    if grad is None:
        return None
    if grad.device != meta.device:
        raise RuntimeError(f"{node.name()}: expected a gradient on {meta.device}, got one on {grad.device}")
    if tuple(grad.shape) != tuple(meta.shape):
        grad = grad.sum_to_size(tuple(meta.shape))
    return grad if grad.dtype == meta.dtype else grad.to(meta.dtype)
