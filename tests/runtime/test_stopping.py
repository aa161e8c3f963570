"""Stop requests: answered at once, heard whenever they come, and followed when nothing is lost."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from devft_jax.runtime.stopping import Stopped, StopRequest

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def busy():
    """A second of computation in which Python hears of no signal."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)


def ask(stop, *numbers):
    """Send signals one soon after the other, at None after a pause, and wait."""
    with stop.listening():
        for number in numbers:
            time.sleep(0.05 if number is not None else 0.6)
            if number is not None:
                os.kill(os.getpid(), number)
        time.sleep(10)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_under_way_is_finished_and_that_is_said_at_once(number):
    said = []
    stop = StopRequest(lambda text: said.append((text, time.monotonic())))
    stop.doing = "round 3"
    with stop.listening():
        asked = time.monotonic()
        os.kill(os.getpid(), number)
        busy()
        ended = time.monotonic()
        assert stop.signal == number
    [(text, at)] = said
    assert text == "finishing round 3; Ctrl-C again stops now"
    assert at - asked < (ended - asked) / 2


@pytest.mark.parametrize("number", NUMBERS)
def test_before_anything_is_to_be_lost_a_request_stops_at_once(number):
    stop = StopRequest()
    with pytest.raises(Stopped):
        ask(stop, number)
    assert stop.signal == number


def test_work_that_is_saved_ends_at_the_next_check():
    stop = StopRequest()
    stop.check()
    stop.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        stop.check()


def test_one_request_that_arrives_twice_is_one_and_a_later_ctrl_c_stops_now():
    stop = StopRequest()
    stop.doing = "round 3"
    with pytest.raises(KeyboardInterrupt):
        ask(stop, signal.SIGTERM, signal.SIGINT, None, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_what_was_handled_before_is_handled_again():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopRequest().listening():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "devft-stop"]


def test_a_terminal_that_is_to_be_outlived_is():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_are_left_alone():
    heard = []

    def work():
        with StopRequest().listening() as stop:
            heard.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [None]


def test_a_second_ctrl_c_ends_a_process_of_ours_in_the_middle_of_a_computation():
    script = textwrap.dedent(
        """
        import hashlib, sys
        from devft_jax.runtime.stopping import StopRequest, own_process
        own_process()
        stop = StopRequest(lambda text: print(text, file=sys.stderr, flush=True), may_exit=True)
        stop.doing = "round 3"
        with stop.listening():
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    said = process.stderr.read()
    assert "finishing round 3; Ctrl-C again stops now\nstopped at once" in said
    assert "Traceback" not in said


def test_ctrl_c_while_the_command_is_loaded_is_no_traceback():
    script = textwrap.dedent(
        """
        import builtins, os, signal
        from devft_jax.__main__ import main
        imported = builtins.__import__
        def asking(name, *rest):
            if name == "devft_jax.commands.cli":
                os.kill(os.getpid(), signal.SIGINT)
            return imported(name, *rest)
        builtins.__import__ = asking
        main()
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "devft: interrupted; nothing was started.\n")
