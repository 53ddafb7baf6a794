"""`refsam-bench`: accuracy, parity and speed of a bundle, one subcommand per question."""

from __future__ import annotations

import click

from refsam_bench.commands.accuracy import accuracy
from refsam_bench.commands.exchange import exchange
from refsam_bench.commands.gpu import gpu
from refsam_bench.commands.parity import parity
from refsam_bench.commands.precision import precision
from refsam_bench.commands.report import report
from refsam_bench.commands.speed import speed
from refsam_trt.command.ending import run_command


@click.group(context_settings={"show_default": True})
@click.version_option(package_name="refsam-trt")
def command() -> None:
    """Measure a bundle: how good is it, does it equal the PyTorch reference, how fast is it?

    BUNDLE is a folder, or nano, the model that ships with refsam-trt.
    """


for subcommand in (accuracy, exchange, gpu, parity, precision, report, speed):
    command.add_command(subcommand)


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "export,bench", "refsam-bench")


if __name__ == "__main__":
    main()
