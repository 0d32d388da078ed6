"""What the compiler leaves of a program that does not fit."""

import pytest

from mappa_jax.plan import compiling, hlo, memory

LEFT = """HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias) }, more

ENTRY %e (w: f32[16], b: s32[4]) -> (f32[16], f32[8]) {
  %w = f32[16]{0} parameter(0), metadata={op_name="trainable[\\'w\\']"}
  %b = s32[4]{0} parameter(1), metadata={op_name="batch.tokens"}
  %y = f32[8]{0} slice(%w), slice={[0:8]}
  ROOT %t = (f32[16]{0}, f32[8]{0}) tuple(%w, %y)
}
"""


class Refused:
    """A lowered function whose compilation fails as XLA:TPU's does."""

    def __init__(self, message, files):
        self.message, self.files = message, files

    def compile(self, compiler_options):
        import jax

        folder = compiler_options["xla_dump_to"]
        for name, text in self.files.items():
            with open(f"{folder}/{name}", "w") as f:
                f.write(text)
        raise jax.errors.JaxRuntimeError(self.message)


OOM = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (1.50K) exceeds (1.00K)."
REPORT = "Memory Space: default (color=0)\nTotal bytes: 1600 (1.5KiB)\n"


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({"a-memory-usage-report.txt": REPORT}, 1600),
        ({}, 1536),  # from the message, which rounds
    ],
)
def test_memory_is_what_would_have_been_needed(files, total):
    files = files | {"m.oom_intermediate_module.txt": LEFT}
    built = compiling.build(Refused(OOM, files), tpu=True)
    assert not built.complete
    assert built.memory.total == total
    assert built.memory.arguments["params"] == 64
    assert built.memory.arguments["other"] == 16
    assert built.memory.results == 32  # the first takes an argument's place
    assert built.memory.temporaries == total - 64 - 16 - 32
    assert memory.largest(built.module)[0] == "f32[8]"


def test_the_other_form_of_the_message():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 2.00M of 1.00M hbm."
    files = {"m.oom_intermediate_module.txt": LEFT}
    built = compiling.build(Refused(message, files), tpu=True)
    assert built.memory.total == 2 * 2**20


def test_another_failure_is_not_taken_for_want_of_memory():
    with pytest.raises(Exception, match="INTERNAL"):
        compiling.build(Refused("INTERNAL: broken", {}), tpu=True)


def test_an_amount_that_is_not_said_is_not_invented():
    files = {"m.oom_intermediate_module.txt": LEFT}
    with pytest.raises(hlo.HloError, match="does not say"):
        compiling.build(Refused("RESOURCE_EXHAUSTED: sorry", files), tpu=True)
