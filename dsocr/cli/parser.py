"""One parser for every recipe: TRL's, extended by positional words, flags without a value and config file checks."""

import dataclasses
import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from trl import TrlParser

from dsocr.cli.ranges import check_ranges


Arguments = TypeVar("Arguments")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """Define a dataclass field that becomes a flag.

    Args:
        default: Its default; a list is copied for every use.
        help: Its line in `--help`.
        **metadata: Further arguments of `argparse`'s `add_argument`: `choices`, `metavar`, `nargs`, `const`; and
            `positional=True` for a word without a flag name.
    """
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


class _ConfigLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML takes the last one, and `010`, which YAML 1.1 takes for 8."""

    def construct_yaml_int(self, node):
        if len(node.value) > 1 and node.value[0] == "0" and node.value.isdigit():
            message = f"{node.value} is an octal number in YAML; leave the leading zero out, or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_yaml_int(node)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_ConfigLoader.add_constructor("tag:yaml.org,2002:int", _ConfigLoader.construct_yaml_int)


class RecipeParser(TrlParser):
    """`TrlParser` over dataclasses, for all recipes.

    Args:
        kinds: Dataclasses whose fields become flags.
        description: The recipe's docstring; `--help` shows it unchanged.
    """

    def __init__(self, kinds: Sequence[type], description: str | None = None):
        super().__init__(kinds, description=description, formatter_class=RawDescriptionHelpFormatter)
        self._configured: set[str] = set()
        self.add_argument("--config", metavar="FILE", help="YAML file of flags without dashes; the command line wins.")

    @staticmethod
    def _parse_dataclass_field(parser, field):
        if not field.metadata.get("positional"):
            TrlParser._parse_dataclass_field(parser, field)
            return
        many = not isinstance(field.type, type) and "list" in str(field.type)
        metadata = {key: value for key, value in field.metadata.items() if key != "positional"}
        # Let argparse treat it as optional: a config file may give it. `parse` refuses it if it is missing everywhere.
        parser.add_argument(field.name, nargs="*" if many else "?", default=[] if many else None, **metadata)

    def parse(self, argv: Sequence[str]) -> tuple:
        """Fill the dataclasses from a command line and its config file; a mistake ends in one line, exit code 2."""
        try:
            config = self._find_config(argv)
            if config is not None:
                content = self.load_config(config)
                self._configured = set(content)
                self.set_defaults_with_config(**content)
            parsed = self.parse_args_into_dataclasses(args=list(argv))
            self._check_positional(parsed)
            for item in filter(dataclasses.is_dataclass, parsed):
                check_ranges(item)
        except ValueError as error:
            self.error(str(error))
        # Drop argparse's own namespace, the last item: it holds only --config.
        return tuple(item for item in parsed if dataclasses.is_dataclass(item))

    def names(self, dest: str, argv: Sequence[str]) -> bool:
        """Whether a flag stands on a command line, or in the config file that `parse` took."""
        return dest in self._configured or any(
            word.startswith("--") and word[2:].split("=")[0].replace("-", "_") == dest for word in argv
        )

    def _find_config(self, argv: Sequence[str]) -> str | None:
        # Use a separate parser: this one would refuse a missing required flag, although the config file may give it.
        finder = ArgumentParser(prog=self.prog, add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        return finder.parse_known_args(list(argv))[0].config

    def _check_positional(self, parsed: Sequence[Any]) -> None:
        for item in filter(dataclasses.is_dataclass, parsed):
            for field in dataclasses.fields(item):
                if field.metadata.get("positional") and not getattr(item, field.name):
                    raise ValueError(f"name {field.name}: {field.metadata['help']}")

    def load_config(self, path: str) -> dict[str, Any]:
        """Load and check a config file; the values of its `env` (TRL's own key) become environment variables.

        Raises:
            ValueError: for an unknown key or a wrong type; the message names file and key. (TRL accepts wrong types.)
        """
        if not Path(path).is_file():
            raise ValueError(f"--config {path}: there is no such file.")
        try:
            content = yaml.load(Path(path).read_text(encoding="utf-8-sig"), _ConfigLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"--config {path}: not YAML in UTF-8 ({reason}).") from error
        if not isinstance(content, dict):
            raise ValueError(f"--config {path}: expected `key: value` lines.")
        os.environ.update({name: str(value) for name, value in content.pop("env", {}).items()})
        actions = {action.dest: action for action in self._actions}
        for key, value in content.items():
            if key not in actions or key in ("config", "help"):
                raise ValueError(f"--config {path}: unknown key {key!r}.")
            takes_list = actions[key].nargs in ("+", "*")
            if isinstance(value, list) != takes_list and value is not None:
                wanted = "a list" if takes_list else "a single value"
                raise ValueError(f"--config {path}: {key} takes {wanted}, found {value!r}.")
            self._check_entry(path, key, value, takes_list)
            if isinstance(value, dict) and actions[key].type is not None and "dict" not in str(actions[key].type):
                raise ValueError(f"--config {path}: {key} takes a single value, found {value!r}.")
        return content

    def _check_entry(self, path: str, key: str, value: Any, takes_list: bool) -> None:
        action = next(action for action in self._actions if action.dest == key)
        for item in value if takes_list and value is not None else [value]:
            if action.type is str and isinstance(item, bool):
                raise ValueError(f"--config {path}: {key}: YAML takes this word for {item}; put it in quotes.")
            if callable(action.type) and isinstance(item, str | int | float):
                try:
                    action.type(str(item))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"--config {path}: {key}: {item!r} is of the wrong type ({error}).") from error
            if action.choices is not None and item is not None and item not in action.choices:
                choices = ", ".join(map(str, action.choices))
                raise ValueError(f"--config {path}: {key}: {item!r} is not one of {choices}.")


def parse_recipe(kind: type[Arguments], argv: Sequence[str], description: str | None) -> Arguments:
    """Parse a recipe's command line into its one dataclass.

    Args:
        kind: The dataclass.
        argv: Command line without the script's name.
        description: The recipe's docstring.
    """
    return RecipeParser((kind,), description).parse(argv)[0]
