"""Writes docs/settings.md and docs/cli.md from the code: `make reference`. tests/test_reference.py says when they are stale."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from phf.cli import GROUPS, app
from phf.config.attack import OPTIONS as ATTACK_OPTIONS
from phf.config.attack import AttackConfig, AttackSuiteConfig
from phf.config.dynamics import OPTIONS as DYNAMICS_OPTIONS
from phf.config.dynamics import DynamicsConfig
from phf.config.evaluate import OPTIONS as EVALUATE_OPTIONS
from phf.config.evaluate import EvaluateConfig
from phf.config.fields import describe_fields
from phf.config.finetune import OPTIONS as FINETUNE_OPTIONS
from phf.config.finetune import FinetuneConfig, PlainMethod
from phf.config.infer import OPTIONS as INFER_OPTIONS
from phf.config.infer import InferConfig
from phf.config.objectives import _Scheduled, _Threshold, objective_kinds
from phf.config.online import ONLINE_OPTIONS, LemmaConfig, OnlineConfig
from phf.config.recipes import describe_recipe, list_recipes
from phf.config.release import ForgetConfig
from phf.config.steer import SteerConfig
from phf.config.study import Arm, Claim, StudyConfig
from phf.config.train import SamplingConfig, TrainConfig, write_spec

NOTE = "<!-- Written by `make reference` from the code; do not edit. -->"
FOLDER = Path(__file__).parent


def write_settings() -> str:
    """docs/settings.md: every field of every config, in the order of use."""
    return "\n".join([NOTE, *_list_settings()]) + "\n"


def _list_settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield (
        "A dotted key is how a setting is given: `phf train RECIPE optim.learning_rate=1e-3`, "
        "`phf evaluate RUN --set kl.num_tokens=32`, or nested in a recipe's YAML. Unknown keys are refused. "
        "*required*: there is no default."
    )
    yield from (
        "",
        "## Recipes",
        "",
        "What is at the head of each that comes with phf (`phf train RECIPE`):",
        "",
    )
    for recipe in list_recipes():
        text = [
            line for line in describe_recipe(recipe).splitlines() if not line.startswith("  ")
        ]  # no commands
        yield f"- **`{recipe}`**: {' '.join(text)}"
    yield from _describe_config("Training", "phf train RECIPE KEY=VALUE", TrainConfig, {})
    yield from _describe_objectives()
    yield from ("", "## Sampling", "", f"{_read_summary(SamplingConfig)} (`phf evaluate`, `phf attack`)", "")
    yield from _tabulate(SamplingConfig, list(SamplingConfig.model_fields), "sampling.", EVALUATE_OPTIONS)
    yield from _describe_config(
        "Evaluation", "phf evaluate --set KEY=VALUE", EvaluateConfig, EVALUATE_OPTIONS, ("sampling",)
    )
    yield from _describe_kinds("Steering", "--steer KIND:key=value,...", SteerConfig)
    yield from _describe_config(
        "Attacks on a release", "phf attack --set KEY=VALUE", AttackSuiteConfig, ATTACK_OPTIONS, ("sampling",)
    )
    yield from _describe_config("What a score costs", "phf infer --set KEY=VALUE", InferConfig, INFER_OPTIONS)
    yield from _describe_config(
        "Rounds on own text", "phf online --set KEY=VALUE", OnlineConfig, ONLINE_OPTIONS
    )
    yield from _describe_config(
        "The lemma", "phf online RUN --check-lemma --set KEY=VALUE", LemmaConfig, {"cases": "--case"}
    )
    yield from _describe_config(
        "A model as a chain of pages", "phf dynamics --set KEY=VALUE", DynamicsConfig, DYNAMICS_OPTIONS
    )
    yield from _describe_config(
        "Finetuning", "phf finetune --set KEY=VALUE", FinetuneConfig, FINETUNE_OPTIONS, ("method",)
    )
    yield from _describe_config(
        "A study", "the file of phf study", StudyConfig, {}, ("evaluate", "arms", "claims")
    )
    yield from _describe_config("Arms of a study", "under arms, by name", Arm, {})
    yield from _describe_config("Claims of a study", "a list under claims", Claim, {})
    yield from _describe_kinds("Methods of finetuning", "--method KIND:key=value,...", PlainMethod)
    yield from _describe_kinds("Kinds of attack", "--attack KIND:key=value,...", AttackConfig)
    yield from _describe_kinds(
        "Forgetting", "phf release RUN -o DIR --forget KIND:key=value,...", ForgetConfig
    )


def _describe_config(
    title: str, usage: str, config: type[BaseModel], options: Mapping[str, str], skip: tuple[str, ...] = ()
) -> Iterator[str]:
    """A heading and a table of a config's own settings, then the groups inside it."""
    yield from ("", f"## {title}", "", f"{_read_summary(config)} (`{usage}`)", "")
    names = [name for name in config.model_fields if name not in ("objective", *skip)]
    groups = {name: group for name in names if (group := _find_group(config.model_fields[name])) is not None}
    yield from _tabulate(config, [name for name in names if name not in groups], "", options)
    for name, group in groups.items():
        default = _describe_group_default(config.model_fields[name])
        yield from ("", f"### `{name}`", "", f"{describe_fields(config)[name]}{default}", "")
        yield from _tabulate(group, list(group.model_fields), f"{name}.", options)


def _describe_group_default(field: FieldInfo) -> str:
    """What a group holds where it is not given, if that is not its own defaults."""
    if field.default is None:
        return " Default: null."
    given = field.default.model_dump(exclude_defaults=True)
    return f" Default: {', '.join(f'`{key}={value}`' for key, value in given.items())}." if given else ""


def _describe_objectives() -> Iterator[str]:
    kinds = objective_kinds()
    yield from ("", "## Objectives", "")
    yield "`objective.kind=KIND`; [objectives.md](objectives.md) says what each does. Another kind drops the settings of the one before."
    for title, cls in {"When the objective is active": _Scheduled, "Where good ends": _Threshold}.items():
        own = [kind for kind, config in kinds.items() if issubclass(config, cls)]
        yield from (
            "",
            f"### {title}",
            "",
            f"{_read_summary(cls)} For {', '.join(f'`{kind}`' for kind in own)}.",
            "",
        )
        yield from _tabulate(cls, list(cls.model_fields), "objective.")
    for kind, config in kinds.items():
        shared = {
            name for cls in (_Scheduled, _Threshold) if issubclass(config, cls) for name in cls.model_fields
        }
        yield from _describe_kind(config, kind, "objective.", shared)


def _describe_kinds(title: str, usage: str, union: object) -> Iterator[str]:
    yield from ("", f"## {title}", "", f"`{usage}`")
    for config in get_args(get_args(union)[0]):
        yield from _describe_kind(config, config.model_fields["kind"].default, "", set())


def _describe_kind(config: type[BaseModel], kind: str, prefix: str, shared: set[str]) -> Iterator[str]:
    yield from ("", f"### `{kind}`", "", _read_summary(config))
    names = [name for name in config.model_fields if name != "kind" and name not in shared]
    if names:
        yield ""
        yield from _tabulate(config, names, prefix)


def _tabulate(
    config: type[BaseModel], names: list[str], prefix: str, options: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    sentences = describe_fields(config)
    yield "| setting | values | default | meaning |"
    yield "|---|---|---|---|"
    for name in names:
        field = config.model_fields[name]
        option = options.get(f"{prefix}{name}")
        text = sentences[name] + (f" Option: `{option}`." if option else "")
        cells = (f"`{prefix}{name}`", _describe_values(field), _describe_default(field), _escape(text))
        yield f"| {' | '.join(cells)} |"


def _find_group(field: FieldInfo) -> type[BaseModel] | None:
    """The config that a field holds, alone or as an alternative to null."""
    for own in (field.annotation, *get_args(field.annotation)):
        if isinstance(own, type) and issubclass(own, BaseModel):
            return own
    return None


def _describe_values(field: FieldInfo) -> str:
    return _describe_type(field.annotation, field.metadata)


def _describe_type(kind: Any, metadata: list[Any]) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        constraints = [own for info in args[1:] for own in getattr(info, "metadata", [])]
        return _describe_type(args[0], constraints)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        item = _describe_type(args[0], [])
        return f"list of {item}" if "`" not in item else f"list of: {item}"
    if origin is dict:
        return f"mapping of names to {_describe_type(args[1], [])}"
    if origin in (Union, UnionType):
        specs = [own for own in args if own is not type(None)]
        if all(isinstance(own, type) and issubclass(own, BaseModel) for own in specs):
            return "KIND:key=value,..."
        return " or ".join("null" if own is type(None) else _describe_type(own, metadata) for own in args)
    if kind is JsonValue:
        return "values"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(own, key)}" for own in metadata for key, sign in signs.items() if hasattr(own, key)
    ]
    return " ".join([names[kind], ", ".join(limits)]).strip()


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if field.default is None:
        return "null"
    if field.default in ((), {}, PydanticUndefined):  # the last: what a factory makes, an empty mapping
        return "none"
    if isinstance(field.default, tuple):
        return ", ".join(
            f"`{write_spec(own) if isinstance(own, BaseModel) else own}`" for own in field.default
        )
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _read_summary(config: type[BaseModel]) -> str:
    """The docstring's first paragraph, on one line."""
    assert config.__doc__ is not None
    return " ".join(config.__doc__.split("\n\n")[0].split())


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def write_cli() -> str:
    """docs/cli.md: every command with its usage, arguments, options and examples, in the order of use."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="phf")
    lines = [NOTE, "# Commands", "", group.help, ""]
    lines += [
        "Every command says the same with `-h`. A wrong call is one line on stderr and exit code 2.",
        "",
        "`--json` (every command that prints numbers): JSON on stdout and nothing else there; progress and remarks are on stderr. "
        "`--quiet` (every command): results and errors alone. `phf --version`. `phf --install-completion` completes commands and "
        "options in your shell.",
    ]
    for title, names in GROUPS.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += _describe_command(group.commands[name], context, f"phf {name}")
    return "\n".join(lines) + "\n"


def _describe_command(command: Any, parent: Any, path: str) -> Iterator[str]:
    """A command as Markdown, and the commands below it."""
    context = typer.Context(command, parent=parent, info_name=path.split()[-1])
    yield from ("", f"### {path}", "", *_read_paragraphs(command.help))
    yield from ("", "```", " ".join([path, *command.collect_usage_pieces(context)]), "```")
    parameters = [own for own in command.get_params(context) if own.name not in ("help", "quiet")]
    if parameters:
        yield from ("", "| argument or option | default | meaning |", "|---|---|---|")
        yield from (f"| {' | '.join(_describe_parameter(own))} |" for own in parameters)
    examples = command.epilog.split("\n")[2:]
    yield from ("", "Examples:", "", "```", *(line.strip() for line in examples), "```")
    for name, child in getattr(command, "commands", {}).items():
        yield from _describe_command(child, context, f"{path} {name}")


def _describe_parameter(parameter: Any) -> tuple[str, str, str]:
    """Names, default and help of an argument or option."""
    help_text = _escape(parameter.help or "")
    if parameter.param_type_name == "argument":
        return (
            f"`{parameter.metavar or parameter.name.upper()}`",
            "*required*" if parameter.required else "",
            help_text,
        )
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.required:
        default = "*required*"
    elif isinstance(parameter.show_default, str):
        default = ", ".join(f"`{part}`" for part in parameter.show_default.split(", "))
    elif parameter.default is None or parameter.default is False:
        default = ""
    else:
        default = f"`{parameter.default}`"
    return names, default, help_text


def _read_paragraphs(text: str) -> Iterator[str]:
    for place, paragraph in enumerate(text.strip().split("\n\n")):
        if place:
            yield ""
        yield _escape_html(" ".join(paragraph.split()))


def _escape_html(text: str) -> str:
    return text.replace("<|", "&lt;|")


if __name__ == "__main__":
    (FOLDER / "settings.md").write_text(write_settings(), encoding="utf-8")
    (FOLDER / "cli.md").write_text(write_cli(), encoding="utf-8")
