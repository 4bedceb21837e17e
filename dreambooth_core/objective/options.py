"""Options of the objective. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.fields import advanced, option
from dreambooth_core.errors import UserError

DIFFUSION_WEIGHTINGS = ("none", "min_snr", "debiased_estimation", "v_equivalent")
FLOW_WEIGHTINGS = ("none", "sigma_sqrt", "sigma_squared", "cosmap")
TIMESTEP_BIASES = (
    "auto",
    "none",
    "earlier",
    "later",
    "cubic",
    "logit_normal",
    "sigmoid",
    "mode",
    "cosmap",
)


@dataclass
class ObjectiveOptions:
    """The loss, and how much each noise level counts."""

    loss: str = option(
        "l2",
        help="""Distance between prediction and target: squared (l2), absolute (l1),
        pseudo-Huber or smooth L1; these three forgive outliers. dpo (Diffusion-DPO): of a good and
        a bad image of one prompt (marks.file) the good one becomes likelier; whatever is in no
        pair is squared.""",
        choices=("l2", "l1", "huber", "smooth_l1", "dpo"),
    )
    dpo_beta: float = advanced(
        2000.0,
        label="DPO beta",
        help="""How close the adapter stays to what it was at the start: higher stays closer. 1000
        to 5000 is usual.""",
        between=(1.0, 1e6),
    )
    huber_c: float = advanced(
        0.1,
        label="Huber threshold",
        help="Error from which Huber and smooth L1 grow linearly instead of squared.",
        between=(1e-6, 10.0),
    )
    huber_schedule: str = advanced(
        "constant",
        help="""How the threshold depends on the noise: constant; snr and exponential go from
        1 where there is no noise to the threshold where there is most.""",
        choices=("constant", "snr", "exponential"),
    )
    weighting: str = option(
        "none",
        label="Loss weighting",
        help="""Weight of the loss at each noise level: none; for diffusion min_snr (faster
        convergence), debiased_estimation (1/sqrt(SNR)) and v_equivalent (an epsilon base learns
        colours and composition as a v base does); for rectified flow, where s is the share of
        noise, sigma_sqrt (1/s²), sigma_squared (s²: SD3's preconditioned outputs) and cosmap (the
        middle).""",
        choices=tuple(dict.fromkeys(DIFFUSION_WEIGHTINGS + FLOW_WEIGHTINGS)),
        renamed={"debiased": "debiased_estimation"},
    )
    min_snr_gamma: float = advanced(
        5.0,
        label="Min-SNR gamma",
        help="Cap of the signal-to-noise ratio for min_snr. The paper recommends 5.",
        between=(0.01, 100.0),
    )
    max_weight: float = advanced(
        20.0,
        label="Largest weight",
        help="""Cap of the weight for debiased_estimation and v_equivalent, which grow without bound
        where there is almost only noise, and for sigma_sqrt, where there is almost none.""",
        between=(1.0, 1e6),
    )
    noise_offset: float = option(
        0.0,
        help="""Strength of noise that is constant over each channel: teaches very dark and very
        bright images. 0 is off, 0.05 to 0.1 is usual.""",
        between=(0.0, 1.0),
        aliases=("offset_noise",),
    )
    multires_noise_discount: float = option(
        0.0,
        help="""Multi-resolution (pyramid) noise: the share that each coarser level keeps. 0 is off,
        0.1 to 0.4 suits fine-tuning, 0.9 training from scratch.""",
        between=(0.0, 0.99),
        aliases=("pyramid_noise",),
    )
    multires_noise_iterations: int = advanced(
        10,
        help="The number of coarser levels of multi-resolution noise; fewer for small images.",
        between=(1, 16),
        aliases=("pyramid_levels",),
    )
    ip_noise_gamma: float = option(
        0.0,
        label="IP noise gamma",
        help="""Input perturbation: extra noise in the input that is not part of the target, so that
        the model learns to correct its own errors. 0 is off, 0.1 is recommended.""",
        between=(0.0, 1.0),
        aliases=("input_perturbation",),
    )
    zero_terminal_snr: bool = option(
        False,
        label="Zero terminal SNR",
        help="""Rescale the noise schedule so that the last step is pure noise. Needs a base with
        v-prediction (or sample prediction).""",
    )
    min_timestep: int = advanced(
        0,
        help="The lowest timestep (noise level) that is trained.",
        between=(0, 999),
    )
    max_timestep: int = advanced(
        999,
        help="The highest timestep (noise level) that is trained, inclusive.",
        between=(0, 999),
    )
    timestep_bias: str = option(
        "auto",
        help="""Which noise levels are drawn more often: auto (as the base's makers do); none;
        earlier (little noise, details); later (much noise, composition); cubic (strongly later);
        logit_normal, sigmoid, mode and cosmap (the middle).""",
        choices=TIMESTEP_BIASES,
    )
    timestep_bias_multiplier: float = advanced(
        2.0,
        label="Bias multiplier",
        help="How many times more often earlier or later draw the favoured range.",
        between=(0.0, 100.0),
    )
    timestep_bias_portion: float = advanced(
        0.25,
        label="Bias portion",
        help="Share of the timesteps that earlier or later favour.",
        between=(0.01, 0.99),
    )
    logit_mean: float = advanced(
        0.0,
        label="Logit-normal mean",
        help="Location for logit_normal; above 0 draws more noise.",
        between=(-5.0, 5.0),
    )
    logit_std: float = advanced(
        1.0,
        label="Logit-normal width",
        help="Width for logit_normal.",
        between=(0.05, 10.0),
    )
    sigmoid_scale: float = advanced(
        1.0,
        help="Width for sigmoid, which is logit_normal around the middle.",
        between=(0.05, 10.0),
    )
    mode_scale: float = advanced(
        1.29,
        help="How much mode favours the middle; below 0 it favours the ends.",
        between=(-1.0, 1.75),
    )
    shift: str = option(
        "auto",
        label="Timestep shift",
        help="""Rectified flow: moves training towards noise. auto (as the base's makers do);
        none; static (the same for all sizes); resolution (more for larger images, by the rule of
        the base's makers).""",
        choices=("auto", "none", "static", "resolution"),
    )
    shift_factor: float | None = advanced(
        None,
        help="Factor of the static shift; 1 is none, 3 is usual. Empty takes the base's own.",
        between=(0.01, 100.0),
    )

    def timestep_range(self, steps: int) -> tuple[int, int]:
        """First and last timestep that are drawn of ``steps``, inclusive.

        Raises:
            UserError: ``min_timestep`` is above ``max_timestep``.
        """
        low, high = self.min_timestep, min(self.max_timestep, steps - 1)
        if low > high:
            raise UserError(
                f"the first timestep {low} is above the last, {high}",
                where="objective.min_timestep",
                do="Give a range such as 0 to 999.",
            )
        return low, high
