"""The `aegis` command: one file or package for each command, listed in `main`."""


def run() -> None:
    """Runs it. Most of a short command's time is imports, and an interrupt in them is as quiet as any other."""
    try:
        from aegis_daemon.cli.main import run as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command()
