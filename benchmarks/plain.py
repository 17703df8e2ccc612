"""The plain way to train the same probes: what a step costs when nothing is shared and everything is kept."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.models import Bench
from innervision.engine.descent import Descent


class PlainLearner:
    """Trains the probes of `Descent`, one target after the other, with the same losses.

    For every target the MLLM runs once, with logits and all hidden states; the expert sees image by image; the
    graphs of all layers, with the attention matrices, live until a single backward at the end. Every depth
    prediction also goes through the depth head. What comes out is not used, so no graph is built for it.
    """

    def __init__(self, bench: Bench, descent: Descent) -> None:
        """Make an optimizer for each target's probes."""
        self.bench = bench
        self.descent = descent
        self.optimizers = [
            torch.optim.AdamW(bank.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
            for bank in descent.banks.values()
        ]
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # matrices in bfloat16, as plain code has

    def learn(self) -> dict[str, dict[int, Tensor]]:
        """Add the gradients of the batch's mean loss, and give each target's loss by layer."""
        mllm, batch = self.bench.mllm, self.bench.batch
        losses: dict[str, dict[int, Tensor]] = {}
        for target in self.bench.targets:
            features = torch.cat([target.encode(pixels[None]) for pixels in batch.pixels[target.name]])
            inputs = batch.inputs.to(mllm.device, mllm.model.dtype)
            with torch.no_grad():
                output = mllm.model(**inputs.tensors, use_cache=False, output_hidden_states=True)
            bank = self.descent.banks[target.name]
            losses[target.name] = {}
            for layer in self.descent.layers:
                with self.descent.session.autocast(mllm.device), sdpa_kernel(SDPBackend.MATH):
                    prediction = bank(layer, output.hidden_states[layer], inputs.mask)
                losses[target.name][layer] = F.smooth_l1_loss(prediction, features)
                if target.name == "depth":
                    self.decode_depth(prediction)
            torch.stack(list(losses[target.name].values())).sum().backward()
        return losses

    @torch.no_grad()
    def decode_depth(self, features: Tensor) -> Tensor:
        """Give depth maps (B, 336, 336) of features (B, 576, C), which stand at all four inputs of the head."""
        model = self.bench.depth_model
        side = round(features.shape[1] ** 0.5)
        with self.descent.session.autocast(features.device):
            with_cls = F.pad(features, (0, 0, 1, 0))  # the neck drops the CLS token
            return model.head(model.neck([with_cls] * 4, side, side), side, side)

    def finish_step(self) -> None:
        """Update the probes."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
