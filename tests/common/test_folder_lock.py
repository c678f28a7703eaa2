"""One run per output folder."""

import signal
import subprocess
import sys

import pytest

from dsocr.common.folder_lock import hold_folder


HOLD = """
import sys, time
from dsocr.common.folder_lock import hold_folder

with hold_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is writing into this folder"), hold_folder(tmp_path):
            pass
        # The other ranks of a run share its folder.
        with hold_folder(tmp_path, is_main=False):
            pass
        first.send_signal(signal.SIGKILL)
    with hold_folder(tmp_path):
        pass


def test_a_run_leaves_its_folder_free(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path / "new"):
        raise KeyError
    with hold_folder(tmp_path / "new"):
        pass
