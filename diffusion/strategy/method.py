"""How images are classified, whichever the model is: which evaluations, which error, and what is compared."""

from dataclasses import dataclass

from diffusion import settings
from diffusion.strategy.base import Strategy
from diffusion.strategy.level_weights import LevelWeights


@dataclass(frozen=True)
class Method:
    """strategy: which (candidate, timestep, noise) are evaluated; loss: a name in scores.SCORES, for a DiT one in scores.TERMS;
    level_weights: by which errors are multiplied before they are compared; ablation: guidance, cropped errors, the noise's kind.
    """

    strategy: Strategy
    loss: str = "l2"
    level_weights: LevelWeights | None = None
    ablation: settings.Ablation = settings.NO_ABLATION

    def evaluations(self, n_levels: int, n_candidates: int) -> int:
        """Network evaluations per image, at most."""
        plan = self.strategy.plan(n_levels)
        return self.strategy.price(plan, n_candidates) + self.ablation.guided * len(plan.t)

    def identity(self) -> settings.Identity:
        """What a record's numbers depend on, as JSON values, beside the loss, which some runs do not name."""
        weights = {"level_weights": self.level_weights.identity} if self.level_weights else {}
        return self.strategy.identity() | weights | self.ablation.identity()

    @property
    def folder_ending(self) -> str:
        """What a run folder's name ends with."""
        return (f"_{self.level_weights.name}" if self.level_weights else "") + self.ablation.name
