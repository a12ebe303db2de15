"""How candidates are eliminated, as the options say it: the plan of timesteps, its price, and the elimination of one image.

args: the options of `cli.add_race_options` with to_keep, n_samples, n_trials and, where there is one, prune_img_size.
"""

RACE = {"alpha": 0.05, "min_samples": 10, "round_size": 5, "max_samples": 250}  # defaults of the race's options
ROUND_EVALUATIONS = 32  # a race's round has at least as many, so that a device's batch stays full when few candidates are left


def resolve_race(args) -> None:
    """Fills in the race's options. Raises ValueError for those of the other strategy and for impossible ones."""
    given = [f"--{name}" for name in RACE if getattr(args, name) is not None]
    if args.strategy == "stages":
        if given:
            raise ValueError(f"{given[0]} is for --strategy race: add that, or leave it out")
        return
    if args.to_keep or args.n_samples:
        raise ValueError("--to_keep and --n_samples are for --strategy stages: leave them out, or leave out --strategy race")
    for name, default in RACE.items():
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    race_rule(args)
    if not args.min_samples <= args.max_samples * args.n_trials or args.max_samples > 1000:
        raise ValueError(f"--min_samples {args.min_samples} must not exceed --max_samples {args.max_samples}, nor that 1000")


def race_rule(args):
    """The Race of these options. Raises ValueError for an impossible one."""
    from diffusion.elimination import Race

    return Race(args.alpha, args.min_samples, args.round_size, ROUND_EVALUATIONS)


def race_identity(args) -> dict:
    """What the numbers of a race depend on; nothing for stages, whose folders are older than the option."""
    return {name: getattr(args, name) for name in ("strategy", *RACE)} if args.strategy == "race" else {}


def make_plan(args, n_candidates: int):
    """The Plan of the strategy. Raises ValueError for stages that cannot be run."""
    from diffusion import schedule

    if args.strategy == "race":
        return schedule.race_plan(args.max_samples, args.n_trials)
    schedule.check_stages(args.to_keep, args.n_samples, n_candidates)
    return schedule.make_plan(args.n_samples, args.n_trials)


def price(args, plan, n_candidates: int) -> tuple[int, int]:
    """Network evaluations an image, of a race at most; and how many of them are at --prune_img_size."""
    from diffusion import schedule

    to_keep = args.to_keep or [1]
    total = schedule.count_evaluations(plan, n_candidates, to_keep)
    if not getattr(args, "prune_img_size", None):
        return total, 0
    again = to_keep[-2] * plan.stages[-1].start  # what survives is evaluated in full on the pairs of all stages
    return total + again, total - to_keep[-2] * (plan.stages[-1].stop - plan.stages[-1].start)


def eliminate(args, evaluate, class_of: list[int], plan, small=None) -> tuple[dict, int, dict]:
    """Runs the strategy: every row's errors, the winning row, and what else a record says of it.

    small: evaluate on a smaller image, for all stages but the last; what fell there is "pruned". Of a race: "fell".
    """
    from diffusion import elimination

    if small:
        errors, winner, pruned = elimination.run_pruned(small, evaluate, len(class_of), plan.stages, args.to_keep)
        return errors, winner, {"pruned": pruned, "evaluations": price(args, plan, len(class_of))[0]}
    if args.strategy == "stages":
        return *elimination.run_stages(evaluate, len(class_of), plan.stages, args.to_keep), {}
    errors, winner, fell = elimination.run_race(evaluate, class_of, plan.t, race_rule(args))
    return errors, winner, {"fell": fell}
