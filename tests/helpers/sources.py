"""Which source reads which format of the simulators."""

from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.dectris import Dectris
from quietbeam_plugins.sources.jungfraujoch import Jungfraujoch
from quietbeam_plugins.sources.karabo import Karabo
from quietbeam_plugins.sources.odin import OdinLiveView
from quietbeam_plugins.sources.slsdetector import SlsDetector
from quietbeam_plugins.sources.stins import Stins

_SOURCES = {
    "dectris": Dectris,
    "array": Array,
    "adzmq": Array,
    "stins": Stins,
    "xspress3": Stins,
    "odin": OdinLiveView,
    "sls": SlsDetector,
    "karabo": Karabo,
    "jungfraujoch": Jungfraujoch,
}


def source(form, **settings):
    """The source that reads ``form``, one of FORMATS or the name before its first dash."""
    return _SOURCES[form.split("-")[0]](**settings)


def decoder(form, **settings):
    """Its decoder; nothing is opened."""
    return source(form, address="tcp://127.0.0.1:1", **settings).decoder()


def feed(running, messages, now_ns=0):
    """Events of whole messages."""
    return [
        event
        for message in messages
        for number, part in enumerate(message)
        for event in running.feed(part, now_ns, starts_message=number == 0)
    ]
