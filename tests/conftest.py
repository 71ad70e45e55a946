# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)
