# SPDX-License-Identifier: AGPL-3.0-or-later
"""A driver for Triton that needs no GPU: kernels are specialised, compiled and launched as on one, but none runs."""

from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

WARP_SIZES = {"gfx942": 64}


def target_of(name):
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, WARP_SIZES.get(name, 32))


class StandIn:
    """A driver whose GPU is a named one.

    Attributes:
        binaries: Source and binary of each kernel that was loaded, once.
        launches: Binary and arguments of each launch.
    """

    def __init__(self, name):
        self.target, self.binaries, self.launches = target_of(name), [], []
        limits = {"max_shared_mem": 65536, "multiprocessor_count": 132, "warpSize": self.target.warp_size}
        self.utils = SimpleNamespace(
            load_binary=self.load, unload_module=self.unload_module, get_device_properties=lambda device: limits
        )

    def install(self):
        """Make Triton use this driver, whatever it has compiled before."""
        triton.runtime.driver.set_active(self)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return "cpu"

    def unload_module(self, module):
        """Nothing is loaded."""

    def load(self, name, binary, shared, device):
        self.binaries.append((self.source, self.metadata, binary))
        return object(), len(self.binaries), 0, 0, 1024

    def launcher_cls(self, source, metadata):
        self.source, self.metadata = source, metadata

        def launch(x, y, z, stream, function, packed, details, enter, leave, *args):
            self.launches.append((function, (x, y, z), args))

        return launch


def forget(modules):
    """Make kernels of modules compile again, as for another target."""
    for module in modules:
        for kernel in vars(module).values():
            if isinstance(kernel, JITFunction):
                kernel.device_caches.clear()
