"""What a command does before it imports the rest: Ctrl-C then ends it at once, without a traceback, until `session.run` is there.

Imported by a file that runs as a command, and by nothing else.
"""

import signal

quiet = False


def be_quiet() -> None:
    """Not where a shell has this process ignore Ctrl-C, as in the background of a script."""
    global quiet
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        quiet = True
