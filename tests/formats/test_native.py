from pytreesaver.formats import native
from pytreesaver.testing import FormatConformance


class TestNativeFormat(FormatConformance):
    format = native
