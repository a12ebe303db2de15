#!/usr/bin/env python
"""Write a noise bank for --noise_path: standard normal float32 [n, channels, img_size/8, img_size/8].

python scripts/save_noise.py --img_size 512          # noise_512.pt, the published one
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion import startup

    startup.be_quiet()

from diffusion import cli, files, session


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--img_size", type=cli.at_least(8), default=512, help="pixels a side of the run's images (default: 512)")
    parser.add_argument("--n", type=cli.at_least(1), default=1024, help="rows: timesteps times trials (default: 1024)")
    parser.add_argument("--channels", type=cli.at_least(1), default=4, help="latent channels of the VAE (default: 4)")
    parser.add_argument("--downscale", type=cli.at_least(1), default=8, help="pixels per latent element (default: 8)")
    parser.add_argument("--seed", type=cli.seed, default=42, help="default: 42, the published one")
    parser.add_argument("-o", "--out", metavar="FILE", help="default: noise_<img_size>.pt")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.img_size % args.downscale:
        return cli.fail(f"--img_size {args.img_size} must be a multiple of --downscale {args.downscale}")
    side = args.img_size // args.downscale
    needed = 4 * args.n * args.channels * side**2
    if needed > cli.memory():
        size = f"--n {args.n}, --channels {args.channels}, --img_size {args.img_size}"
        there = f"{needed / 1e9:,.0f} GB, and this machine has {cli.memory() / 1e9:,.0f} GB"
        return cli.fail(f"{size}: this noise takes {there}: give fewer rows or a smaller size")
    import torch

    torch.manual_seed(args.seed)
    noise = torch.randn(args.n, args.channels, side, side)
    path = args.out or f"noise_{args.img_size}.pt"
    with cli.bad_input():
        files.write(path, lambda file: torch.save(noise, file))
    print(f"{path}: {list(noise.shape)}, seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(session.run(main))
