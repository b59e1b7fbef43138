"""`genre evaluate`: a published version's metrics beside the baselines', or its off-policy value on a log of what was shown.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre evaluate like@candidate --data ml-100k
    genre evaluate --policy next_item@candidate --logged data/served --explore softmax=1 --places 1
"""

from typing import Annotated, Any

import typer

from genre.cli.options import (
    DATA_VARIABLE,
    BaselinesOption,
    BaseOption,
    JsonOption,
    PartOption,
    PrecisionOption,
    QuantizationOption,
    RegistryOption,
    SeenOption,
    TaskOption,
    check_choice,
    check_precision,
    check_seen,
    data_option,
    ref_argument,
)
from genre.cli.output import check_file, console, format_percent, make_table, show_metrics, write_result
from genre.cli.shell.completion import complete_refs
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

_NAMES = {"ips": "IPS", "snips": "SNIPS", "dr": "DR", "switch_dr": "switch-DR"}
_OF_POLICIES = "Of --policy: "


def evaluate(
    ref: Annotated[str | None, ref_argument("name, name@alias or name:version; or give --policy.")] = None,
    data: Annotated[
        str | None,
        data_option("A data set folder, or the name of a packaged data set. Of --policy: where histories come from, by time."),
    ] = None,
    registry: RegistryOption = "registry",
    part: PartOption = "test",
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    seen: SeenOption = None,
    baselines: BaselinesOption = "all",
    precision: PrecisionOption = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", metavar="REF", help="A version whose lists are valued on --logged.", autocompletion=complete_refs
        ),
    ] = None,
    logged: Annotated[
        str | None,
        typer.Option(metavar="DIR", help=_OF_POLICIES + "a log of lists with propensities, such as an imported served log."),
    ] = None,
    explore: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help=_OF_POLICIES + "how it draws lists, as genre serve --explore; epsilon=0 by default."),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option("--explore-pool", help=_OF_POLICIES + "the best so many items that it draws from; 100 by default."),
    ] = None,
    task: TaskOption = None,
    reward: Annotated[
        str | None, typer.Option(metavar="COLUMN", help=_OF_POLICIES + "the reward; by default reward, or else click.")
    ] = None,
    among: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help=_OF_POLICIES + "of events and items; items of the event's value could be shown."),
    ] = None,
    places: Annotated[int | None, typer.Option(help=_OF_POLICIES + "only the first so many places of a list.")] = None,
    clip: Annotated[float | None, typer.Option(help=_OF_POLICIES + "the largest weight; 100 by default.")] = None,
    switch: Annotated[
        float | None, typer.Option(help=_OF_POLICIES + "the largest weight that corrects switch-DR's model; 10 by default.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a published version under its own protocol, beside the baselines; --json also writes reliability plots.

    With --policy REF --logged DIR: what its lists would have earned in the place of those that were shown.
    """
    check_file(json_file, "--json")
    check_choice("part", part, ("valid", "test"))
    check_choice("quantization", quantization, ("none", "int8", "nf4"))
    chosen, computed = check_seen(seen), check_precision(precision)
    name = _one_version(ref, policy, logged, data)
    options: dict[str, Any] = {"policy": explore, "pool": pool, "task": task, "reward": reward, "among": among, "places": places}
    options |= {"clip": clip, "switch": switch}
    given = {key: value for key, value in options.items() if value is not None}
    if policy is None and given:
        names = {"policy": "explore", "pool": "explore-pool"}
        got = ", ".join(f"--{names.get(key, key)}" for key in given)
        raise InputError("an option of --policy alone", got=got, expected=f"--policy {name} --logged DIR, or no such option")
    if policy is not None:
        refuse_unused(["--part", "--seen", "--baselines"], got="--policy", expected="REF --data DIR")
    from genre.evaluation.baselines import chosen_baselines
    from genre.evaluation.exploring import Exploration

    chosen_baselines(baselines)
    if explore is not None:
        Exploration.parse(explore)
    from genre.jobs.evaluate import draw_reliability
    from genre.jobs.evaluate import evaluate as run_evaluation
    from genre.jobs.loading import load_base, open_data, open_log
    from genre.jobs.off_policy import evaluate_policy
    from genre.progress import Reporter
    from genre.registry import Registry

    store = Registry(registry)
    manifest = store.resolve(name).manifest
    reporter = Reporter.for_terminal()
    if logged is not None:
        shown, histories = open_log(logged), None if data is None else open_log(data)
        loaded = load_base(manifest, base, quantization=quantization, precision=computed)
        values = evaluate_policy(store, name, shown, data=histories, base=loaded, reporter=reporter, **given)
        _show_values(values)
        write_result(json_file, values)
        return
    assert data is not None
    opened = open_data(data, manifest.reads)
    loaded = load_base(manifest, base, quantization=quantization, precision=computed)
    found = run_evaluation(store, name, opened, loaded, part=part, seen=chosen, baselines=baselines, reporter=reporter)
    show_metrics(found["tasks"])
    show_metrics({f"{name}, {task['cold']['items']}": task["cold"] for name, task in found["tasks"].items() if "cold" in task})
    show_metrics(
        {f"{name}, {task['untied']['targets']}": task["untied"] for name, task in found["tasks"].items() if "untied" in task}
    )
    for name, line in found["protocol"].items():
        print(f"protocol of {name}: {line}")
    write_result(json_file, found)
    for name, plot in draw_reliability(found, json_file).items() if json_file is not None else ():
        print(f"reliability of {name}: {plot}")


def _one_version(ref: str | None, policy: str | None, logged: str | None, data: str | None) -> str:
    """The reference of the version that is meant; raises an `InputError` for arguments that don't go together."""
    expected = "REF --data DIR, or --policy REF --logged DIR"
    if (policy is None) != (logged is None):
        got = "--policy alone" if logged is None else "--logged alone"
        raise InputError("an off-policy value needs a version and a log", got=got, expected="--policy REF --logged DIR")
    if ref is not None and policy is not None:
        raise InputError("one version at a time", got=f"{ref} and --policy {policy}", expected=expected)
    if (name := policy or ref) is None:
        raise InputError("no version is named", got="neither REF nor --policy", expected=expected)
    if policy is None and data is None:
        raise InputError("no data set is named", got=f"neither --data nor {DATA_VARIABLE}", expected=expected)
    return name


def _show_values(found: dict[str, Any]) -> None:
    """Print the values by every estimator, and what they rest on."""
    title = f"{found['reward']} per list, {found['ref']} by {found['policy']}"
    table = make_table(title, {"estimator": "left", "value, 95 % interval": "right", "minus what was shown": "right"})
    table.add_row("what was shown", _figure(found["logging"]), "")
    for name, shown in _NAMES.items():
        table.add_row(shown, _figure(found["estimates"][name]), _figure(found["minus_logging"][name]))
    console().print(table)
    weights, lists = found["weights"], found["lists"]
    left_out = f"; {found['left_out']:,} without propensities left out" if found["left_out"] else ""
    print(f"{lists:,} lists of at most {found['places']} places to {found['users']:,} users{left_out}")
    print(
        f"weight on {weights['lists_with_weight']:,} lists, as much as {weights['effective_lists']:,.0f} equal ones; "
        f"{weights['rewards_with_weight']:,} rewards with weight; {weights['clipped']:,} lists clipped at {weights['clip']:g}"
    )
    print(f"the weights' mean is {_figure(weights['mean'])}; 1 is expected")
    low, high = weights["mean"]["interval"] or (1.0, 1.0)
    if high < 1:
        print(
            f"note: about {format_percent(1 - weights['mean']['value'])} of what this policy shows was never shown in the log, "
            "or was clipped: values leave that out"
        )
    elif low > 1:
        print("note: weights are too large on average: are these the propensities that the lists were drawn with?")
    if weights["few_rewards"]:
        print(f"note: {weights['rewards_with_weight']} rewards with weight are too few for an interval to hold")


def _figure(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    interval = entry["interval"]
    return f"{entry['value']:.4f}" + ("" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]")
