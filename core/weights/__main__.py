"""Command line: ``python -m core.weights list | get NAME... | verify [NAME...] | info FILE...`` and more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import SuiteError
from core.weights.commands import add_commands
from core.weights.download import ask_hub, check_file, download
from core.weights.registry import Registry, RegistryError, WeightFile, size_text


def show_list(registry: Registry) -> int:
    """Print every file, whether it is here, its size, licence and place."""
    for row in registry.files.values():
        found = registry.find(row.name)
        print(f"{'+' if found else '-'} {row.name:32} {row.size_text:>14}  {row.title}")
        print(f"{'':50} {row.path} from {row.repo or 'this project'}; {row.licence_text}")
        if found is not None and found.name != row.path.rsplit("/", 1)[-1]:
            print(f"{'':50} {found.name} is here and does as well")
    print("\nBundles, for get and verify:")
    for name, members in registry.bundles.items():
        print(f"  {name:16} {' '.join(members)}")
    print(f"\n+ is here, - is not. Folder: {registry.folder}")
    return 0


def get(registry: Registry, names: Sequence[str]) -> int:
    """Fetch the files that are not here; 1 if one could not be had, and the others are fetched still."""
    failed = False
    for row in registry.expand(names):
        found = registry.find(row.name)
        # A bundled file may stand in for a published one: who asks for that by name gets it.
        if found is not None and (row.repo is None or not registry.is_bundled(found)):
            print(f"{row.name}: already here, {found}")
            continue
        if row.repo is None:
            print(registry.explain_missing(row.name), file=sys.stderr)
            failed = True
            continue
        try:
            _fetch(registry, row)
        except SuiteError as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


def _fetch(registry: Registry, row: WeightFile) -> None:
    offer = ask_hub(row)
    size = size_text(offer.size_bytes) if offer.size_bytes else row.size_text
    print(f"{row.name}: {row.title}\n  {row.path}, {size}, from {row.repo}")
    print(f"  Licence: {row.licence_text}", flush=True)
    path = download(row, registry.folder, offer)
    checked = "sha256 is right" if row.sha256 or offer.sha256 else "its sha256 is not known"
    print(f"  Done, {checked}: {path}", flush=True)


def verify(registry: Registry, names: Sequence[str]) -> int:
    """Check the files that are here; 1 if one is corrupt, or one that was asked for by name is missing."""
    failed = False
    for row in registry.expand(names or registry.files):
        found = registry.find(row.name)
        if found is None:
            print(f"missing  {row.name}")
            failed |= bool(names)
            continue
        problem = check_file(registry, found)
        print(f"corrupt  {row.name}: {found}: {problem}" if problem else f"good     {row.name}: {found}")
        failed |= problem is not None
    if failed:
        print("Delete what is corrupt, then: python -m core.weights get NAME")
    return int(failed)


def main(arguments: Sequence[str] | None = None, registry_file: Path | None = None) -> int:
    """Run the command line; return 0 if all is good, 1 if a file is missing or corrupt, 2 if misused."""
    parser = argparse.ArgumentParser(prog="python -m core.weights", description="Weight files of the apps.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show every file, its size, its licence, and whether it is here")
    getter = commands.add_parser("get", help="fetch files: names of files or bundles, such as: sd15 canny")
    getter.add_argument("names", nargs="+", metavar="NAME")
    verifier = commands.add_parser("verify", help="check the files that are here, or those named")
    verifier.add_argument("names", nargs="*", metavar="NAME")
    add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        registry = Registry.load(registry_file)
        if options.command == "list":
            return show_list(registry)
        if hasattr(options, "run"):
            return int(options.run(registry, options))
        return (get if options.command == "get" else verify)(registry, options.names)
    except (ValueError, RegistryError) as error:
        print(error, file=sys.stderr)
        return 2
    except SuiteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        getting = options.command == "get"
        rest = "What came is kept: the same command continues." if getting else "No half file is left."
        print(f"\nStopped. {rest}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
