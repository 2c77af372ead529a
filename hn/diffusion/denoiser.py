"""The one module that is trained: the frozen UNet, reading through a hypernetwork.

`accelerator.prepare` must wrap this and not the bare hypernetwork: prepared alone, its gradients
would not be averaged between processes, without an error.
"""

from dataclasses import replace
from functools import partial

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hn.diffusion.attending.kernels import Kernel
from hn.diffusion.attention import Attachment, attach
from hn.diffusion.compiled import CompiledBlocks
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.memory.plan import Arrangement, Plan, blocks_of
from hn.diffusion.residuals import Residuals
from hn.network.module import Hypernetwork


class Denoiser(nn.Module):
    """Predicts noise (or velocity) with the hypernetwork at strength 1.

    Only the hypernetwork is a submodule. The UNet stays out of `_modules`, so parameters,
    `state_dict` and every wrapper (DDP, FSDP) see the hypernetwork's tensors and nothing else.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        hypernetwork: Hypernetwork,
        *,
        gradient_checkpointing: bool = False,
        plan: Plan | None = None,
        kernel: Kernel = "sdpa",
        transform_once: bool = True,
        stack_projections: bool = False,
        note_residuals: bool = False,
        compile_backend: str | None = None,
    ) -> None:
        super().__init__()
        self.hypernetwork = hypernetwork
        self._residuals = Residuals(hypernetwork) if note_residuals else None
        unet.requires_grad_(False)
        plan = plan or Plan()
        if gradient_checkpointing:
            plan = replace(plan, blocks=blocks_of(unet))
        self.arrangement = Arrangement(unet, plan)
        attachment = attach(
            unet,
            [(hypernetwork, 1.0)],
            kernel=kernel,
            transform_once=transform_once,
            stack_projections=stack_projections,
        )
        self._frozen: tuple[UNet2DConditionModel, Attachment] = (unet, attachment)
        self.compiled = None if compile_backend is None else CompiledBlocks(unet, compile_backend)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The frozen UNet, with the hypernetwork attached."""
        return self._frozen[0]

    @property
    def attachment(self) -> Attachment:
        """The attachment of the hypernetwork to the UNet."""
        return self._frozen[1]

    def forward(
        self, noisy: Tensor, timesteps: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Prediction (B, C, h, w) for noisy latents (B, C, h, w) at timesteps (B,), and residual.

        The residual, a scalar, is the mean squared residual ratio; 0 where it is not noted. It is
        returned, and not kept, because every wrapper looks for gradients in what is returned.
        """
        if self.compiled is not None and torch.is_grad_enabled():
            shapes = noisy.shape, condition.context.shape
            gradient = partial(self._gradient, noisy, timesteps, condition)
            self.compiled.check(shapes, self.unet.dtype, gradient)
        if self._residuals is None or not self.hypernetwork.training:
            with self.arrangement.keeping():
                return self.predict(noisy, timesteps, condition), noisy.new_zeros(())
        with self._residuals.noted(), self.arrangement.keeping():
            prediction = self.predict(noisy, timesteps, condition)
        return prediction, self._residuals.mean()

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The prediction (B, C, h, w) alone, for what is not trained by it."""
        kind, dtype = noisy.device.type, self.unet.dtype
        # of tensors without data (meta) torch refuses to say whether there is autocast
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if not autocast or torch.get_autocast_dtype(kind) != dtype:
            return predict(self.unet, noisy, timesteps, condition)
        with self.attachment.computing_in(dtype), torch.autocast(kind, enabled=False):
            return predict(self.unet, noisy, timesteps, condition)

    def _gradient(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The gradient (N,) of half the prediction's squared norm; draws, but leaves no trace."""
        weights = [p for p in self.hypernetwork.parameters() if p.requires_grad]
        with torch.random.fork_rng():
            prediction = self.predict(noisy, timesteps, condition)
        gradients = torch.autograd.grad(prediction.float().square().sum() / 2, weights)
        return torch.cat([gradient.flatten() for gradient in gradients])


def predict(
    unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, condition: Condition
) -> Tensor:
    """The prediction (B, C, h, w) of a UNet, in its own dtype, with what is attached to it.

    The host does not wait until the condition is on the device: it would for all that is queued.
    """
    return unet(
        condition.beside(noisy.to(unet.dtype)),
        timesteps,
        **condition.arguments(noisy.device, unet.dtype),
        return_dict=False,
    )[0]
