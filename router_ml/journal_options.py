"""The `--journal...` options of `router-ml serve`, and the journal that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from router_ml.errors import InputError
from router_ml.option_types import positive

if TYPE_CHECKING:
    from router_ml.journal import Journal
    from router_ml.privacy import PromptRule

_DETAILS = ("journal_text", "journal_key_file", "journal_redact", "journal_keep_days", "journal_keep_gb")


def add_journal_options(parser: argparse.ArgumentParser) -> None:
    """Where to journal, what of a prompt, for how long."""
    parser.add_argument("--journal", type=Path, metavar="DIR", help="record decisions and outcomes there")
    parser.add_argument(
        "--journal-text",
        choices=("full", "none"),
        default="full",
        help="full: prompts as they are (default); none: a keyed hash, embedding and side features in their place",
    )
    parser.add_argument(
        "--journal-key-file", type=Path, metavar="FILE", help="key of the hashes, at least 16 bytes; for text none"
    )
    parser.add_argument(
        "--journal-redact", metavar="MODULE:FUNCTION", help="Python function from text to text, applied before writing"
    )
    parser.add_argument(
        "--journal-keep-days",
        type=positive,
        metavar="N",
        help="remove closed segments after so many days, read or not; default: keep all",
    )
    parser.add_argument(
        "--journal-keep-gb",
        type=positive,
        metavar="N",
        help="remove the oldest closed segments beyond so many GB (10^9 bytes); default: keep all",
    )


def journal_options(args: argparse.Namespace) -> argparse.Namespace:
    """These options alone, which can be sent to another process."""
    return argparse.Namespace(journal=args.journal, **{name: getattr(args, name) for name in _DETAILS})


def needs_digests(args: argparse.Namespace) -> bool:
    """Whether the router must make digests of prompts, as a journal without text keeps them."""
    return args.journal is not None and args.journal_text == "none"


def open_journal(args: argparse.Namespace) -> Journal | None:
    """The journal that the options ask for; InputError where they contradict each other or cannot be met."""
    from router_ml.journal import Journal, JournalSettings

    rule = _prompt_rule(args)
    if args.journal is None:
        return None
    settings = JournalSettings(
        keep_seconds=None if args.journal_keep_days is None else args.journal_keep_days * 86_400,
        keep_bytes=None if args.journal_keep_gb is None else args.journal_keep_gb * 1e9,
    )
    return Journal(args.journal, settings=settings, rule=rule)


def _prompt_rule(args: argparse.Namespace) -> PromptRule:
    from router_ml.privacy import FullText, NoText, RedactedText, load_redaction, read_key

    given = [name for name in _DETAILS if getattr(args, name) not in (None, "full")]
    if given and args.journal is None:
        raise InputError(f"--{given[0].replace('_', '-')} goes with --journal DIR")
    if args.journal_text == "none":
        if args.journal_key_file is None:
            raise InputError("--journal-text none needs --journal-key-file FILE; make one with: openssl rand -hex 32")
        if args.journal_redact is not None:
            raise InputError("--journal-redact has nothing to redact with --journal-text none; leave one of them out")
        return NoText(read_key(args.journal_key_file))
    if args.journal_key_file is not None:
        raise InputError("--journal-key-file goes with --journal-text none")
    return RedactedText(load_redaction(args.journal_redact)) if args.journal_redact else FullText()
