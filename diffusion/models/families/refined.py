"""What Lumina 2 and Z-Image have in common: blocks for text alone, blocks for the image alone, and then blocks for both.

Their networks are called block by block: diffusers' own call cuts every prompt's padding in loops over the batch, which needs
lengths on the CPU. Here padding is masked, and what depends on a prompt or on a latent alone is computed once for each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from diffusion.models.families.base import Pipeline, without_padding

if TYPE_CHECKING:  # which import torch
    from torch import Tensor, nn

    from diffusion.models.denoiser import Conditions


class Text(NamedTuple):
    """Tokens of B prompts.

    Attributes:
        tokens: [B,L,D].
        counted: bool [B,L], which of them are attended to.
        end: int64 [B], the place after the last of those, which is the image's on the first axis.
    """

    tokens: Tensor
    counted: Tensor
    end: Tensor


class RefinedPipeline(Pipeline):
    """Minus velocity, x0 - noise, at 1 - s. Conditions: a language model's last states but one, with the mask of the prompt."""

    FLOW: ClassVar[bool] = True
    TO_IMAGE: ClassVar[bool] = True
    TEMPLATE: ClassVar[bool] = True
    FIRST: ClassVar[int] = 0  # place of the first token of a text

    @abstractmethod
    def axes(self) -> tuple[float, list[int]]:
        """(base of the frequencies, channels of a head that turn with each of the three axes)."""

    @abstractmethod
    def time(self, network: nn.Module, times: Tensor, dtype) -> Tensor:
        """Embedded times [P,E] in this dtype."""

    @abstractmethod
    def text(self, network: nn.Module, conditions: Conditions) -> Text:
        """The prompts' embedded tokens, before any block."""

    @abstractmethod
    def image(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Embedded tokens [P,N',D] of patches [P,N,d]; N' - N of them are padding, at place 0."""

    @abstractmethod
    def last(self, network: nn.Module, tokens: Tensor, time: Tensor) -> Tensor:
        """Patches [B,N,d] of the image's tokens [B,N,D]."""

    def conditions(self, prompts, read, plain):
        """sequence [K,L,D], mask int64 [K,L]; L as far as the longest prompt goes, unless plain."""
        from diffusion.models.denoiser import Conditions

        sequence, mask = read("text_encoder", lambda output, mask: (output.hidden_states[-2], mask))
        return Conditions(sequence=sequence, mask=mask) if plain else without_padding(sequence, mask)

    def call(self, network, x_t, times, conditions):
        text = self._read(network, conditions)
        time, image = self._look(network, x_t, times, text.end)
        return self._join(network, text, time, image, x_t)

    def share(self, network: nn.Module) -> Callable[..., Tensor] | None:
        import torch

        def run(x_t, times, conditions, latent):
            text = self._read(network, conditions)
            # the place on the first axis is the same for a whole image, and cancels between its queries and keys
            time, image = self._look(network, x_t, times, torch.zeros_like(times, dtype=torch.int64))
            if latent is None:
                row = torch.arange(len(text.end), device=x_t.device).repeat_interleave(len(x_t))
                latent = torch.arange(len(x_t), device=x_t.device).repeat(len(text.end))
                text = Text(*(part[row] for part in text))
            return self._join(network, text, time[latent], image[latent], x_t)

        return run

    def _read(self, network, conditions) -> Text:
        """The prompts' tokens after the blocks that see nothing else."""
        text = self.text(network, conditions)
        tokens, turns = text.tokens, self._turns(self._text_places(text))
        for block in network.context_refiner:
            tokens = block(tokens, text.counted, turns)
        return text._replace(tokens=tokens)

    def _look(self, network, x_t, times, start) -> tuple[Tensor, Tensor]:
        """Embedded times [P,E], and the latents' tokens [P,N',D] after the blocks that see nothing else."""
        h, w = (side // self.patch for side in x_t.shape[-2:])
        patches = x_t.unflatten(-1, (w, self.patch)).unflatten(-3, (h, self.patch)).permute(0, 2, 4, 3, 5, 1).flatten(3)
        time, tokens = self.time(network, times, x_t.dtype), self.image(network, patches.flatten(1, 2))
        turns = self._turns(self._image_places(start, h, w, tokens.shape[1]))
        for block in network.noise_refiner:
            tokens = block(tokens, None, turns, time)
        return time, tokens

    def _join(self, network, text: Text, time: Tensor, image: Tensor, x_t: Tensor) -> Tensor:
        """What the network predicts [B,C,h,w] for B texts and images; x_t: any number of latents, for their size."""
        import torch

        h, w = (side // self.patch for side in x_t.shape[-2:])
        places = [self._text_places(text), self._image_places(text.end, h, w, image.shape[1])]
        turns, counted = self._turns(torch.cat(places, 1)), torch.cat([text.counted, text.counted.new_ones(image.shape[:2])], 1)
        tokens = torch.cat([text.tokens, image], 1)
        for block in network.layers:
            tokens = block(tokens, counted, turns, time)
        n_text = text.tokens.shape[1]
        patches = self.last(network, tokens[:, n_text : n_text + h * w], time)
        apart = patches.unflatten(1, (h, w)).unflatten(-1, (self.patch, self.patch, -1))
        return apart.permute(0, 5, 1, 3, 2, 4).flatten(-2).flatten(-3, -2)

    def _text_places(self, text: Text) -> Tensor:
        """int64 [B,L,3]: (FIRST + l, 0, 0)."""
        import torch
        from torch.nn.functional import pad

        b, length = text.counted.shape
        steps = torch.arange(self.FIRST, self.FIRST + length, device=text.end.device)
        return pad(steps[:, None], (0, 2)).expand(b, -1, -1)

    def _image_places(self, start: Tensor, h: int, w: int, n: int) -> Tensor:
        """int64 [B,n,3]: (start, row, column) of h * w patches, then zeros."""
        import torch
        from torch.nn.functional import pad

        rows, columns = torch.meshgrid(*(torch.arange(side, device=start.device) for side in (h, w)), indexing="ij")
        grid = torch.stack([rows, columns], -1).flatten(0, 1).expand(len(start), -1, -1)
        return pad(torch.cat([start[:, None, None].expand(-1, h * w, 1), grid], -1), (0, 0, 0, n - h * w))

    def _turns(self, places: Tensor) -> Tensor:
        """complex64 [B,S,D/2], by what pairs of channels are multiplied at places int64 [B,S,3] (Su et al. 2021)."""
        import torch

        base, channels = self.axes()
        angles = []
        for axis, n in enumerate(channels):
            frequencies = base ** -(torch.arange(0, n, 2, dtype=torch.float64, device=places.device) / n)
            angles.append(places[..., axis, None] * frequencies)
        angle = torch.cat(angles, -1)
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
