"""The head and the cross-entropy of a language model in one piece, without the logits of all rows at once."""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOGITS = 2**24  # at a time: 64 MiB of fp32, whatever the vocabulary


class HeadLoss(Function):
    @staticmethod
    def forward(ctx, h, weight, targets):
        W, n = weight.to(h.dtype), max(1, LOGITS // len(weight))
        loss, right = h.new_zeros((), dtype=torch.float32), targets.new_zeros(())
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        dW = None
        for i in range(0, len(h), n):
            x, t = h[i : i + n], targets[i : i + n, None]
            logits = (x @ W.T).float()
            right += (logits.argmax(-1, keepdim=True) == t).sum()
            logits -= logits.amax(-1, keepdim=True)
            own = logits.gather(-1, t)
            p = logits.exp_()
            total = p.sum(-1, keepdim=True)
            loss += (total.log() - own).sum()
            if not any(ctx.needs_input_grad[:2]):
                continue
            # the gradient of the logits is p - 1 at the target; used at once, then forgotten
            p = (p.div_(total)).scatter_add_(-1, t, torch.full_like(own, -1.0)).to(h.dtype)
            if dh is not None:
                torch.matmul(p, W, out=dh[i : i + n])
            if ctx.needs_input_grad[1]:
                part = (p.T @ x).to(weight.dtype)
                dW = part if dW is None else dW.add_(part)
        ctx.save_for_backward(dh, dW)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, _):
        dh, dW = ctx.saved_tensors
        return dh if dh is None else dh * dloss.to(dh.dtype), dW if dW is None else dW.mul_(dloss), None


def head_loss(h, weight, targets):
    """Hidden states h (R, C), head weight (V, C), target ids (R,) -> summed cross-entropy (nats, fp32), rows right.

    Equal to F.cross_entropy((h @ weight.T).float(), targets, reduction="sum") and to the count of argmax == target.
    The gradients of h and weight are made in the forward pass, from a few rows of logits at a time: memory does not
    grow with R * V. Differentiable once, and backward may be called once.
    """
    if not torch.is_grad_enabled():  # needs_input_grad does not know of it
        h, weight = h.detach(), weight.detach()
    return HeadLoss.apply(h, weight, targets)
