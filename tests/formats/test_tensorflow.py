from pytreesaver.formats import tensorflow
from pytreesaver.testing import FormatConformance


class TestTensorFlow(FormatConformance):
    format = tensorflow
