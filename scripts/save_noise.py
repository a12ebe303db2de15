#!/usr/bin/env python
"""Write a noise bank for --noise_path: standard normal float32 [n, channels, img_size/8, img_size/8].

python scripts/save_noise.py --img_size 512          # noise_512.pt, the published one
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.cli import parsing
from diffusion.models.speed import devices
from diffusion.runs import loop
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument(
        "--img_size", type=parsing.at_least(8), default=512, help="pixels a side of the run's images (default: 512)"
    )
    parser.add_argument("--n", type=parsing.at_least(1), default=1024, help="rows: timesteps times trials (default: 1024)")
    parser.add_argument("--channels", type=parsing.at_least(1), default=4, help="latent channels of the VAE (default: 4)")
    parser.add_argument("--downscale", type=parsing.at_least(1), default=8, help="pixels per latent element (default: 8)")
    parser.add_argument("--seed", type=parsing.seed, default=42, help="default: 42, the published one")
    parser.add_argument("-o", "--out", type=outputs.Output(), metavar="FILE", help="default: noise_<img_size>.pt")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.img_size % args.downscale:
        return parsing.fail(f"--img_size {args.img_size} must be a multiple of --downscale {args.downscale}")
    side = args.img_size // args.downscale
    with cli.bad_input():
        size = f"noise of --n {args.n}, --channels {args.channels}, --img_size {args.img_size}"
        devices.check_memory(4 * args.n * args.channels * side**2, "cpu", size, "give fewer rows or a smaller size")
    import torch

    torch.manual_seed(args.seed)
    noise = torch.randn(args.n, args.channels, side, side)
    path = args.out or f"noise_{args.img_size}.pt"
    with cli.bad_input():
        files.write(path, lambda file: torch.save(noise, file))
    print(f"{path}: {list(noise.shape)}, seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
