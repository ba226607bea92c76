"""MIDI ports of this machine, through mido and python-rtmidi (the extra `live`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pianogen_hf.errors import PianogenError, did_you_mean, one_line
from pianogen_hf.generation.live_notes import Message

VIRTUAL_NAME = "pianogen"  # of the ports that --virtual makes


class PortError(PianogenError):
    """A MIDI port that can't be used; the message is one line that says what to do."""


def port_names() -> tuple[list[str], list[str]]:
    """Names of inputs and of outputs.

    Raises:
        PortError: if the machine has no MIDI system, or a package is missing.
    """
    mido = _mido()
    with _Explained("this machine's MIDI ports can't be listed"):
        return list(dict.fromkeys(mido.get_input_names())), list(dict.fromkeys(mido.get_output_names()))


class InPort:
    """A port that the player's messages come from.

    Args:
        name: its name, or a part that no other has.
        virtual: whether to make a port of this name, to which other programs connect.

    Raises:
        PortError: if it can't be opened.
    """

    def __init__(self, name: str, virtual: bool = False) -> None:
        self.name = name if virtual else chosen(name, port_names()[0], "--midi_in")
        with _Explained(f"{self.name} can't be opened"):
            self._port = _mido().open_input(self.name, virtual=virtual)

    def pending(self) -> Iterator[tuple[int, ...]]:
        """Messages that have come, as bytes; those of the system are left out."""
        return channel_messages(self._port)

    def close(self) -> None:
        """Close it."""
        self._port.close()


class MidoOut:
    """A port of mido's that takes messages as bytes.

    Args:
        port: what `mido.open_output` or `mido.sockets.connect` gave.
        name: what it is called.
    """

    def __init__(self, port: Any, name: str = "") -> None:
        from mido import Message as MidoMessage

        self._port, self.name, self._message = port, name, MidoMessage.from_bytes

    def send(self, message: Message) -> None:
        """Send a message; those of two bytes came with a third."""
        size = 2 if message[0] & 0xF0 in (0xC0, 0xD0) else 3
        self._port.send(self._message(message[:size]))

    def close(self) -> None:
        """Close it."""
        self._port.close()


def open_output(name: str, virtual: bool = False) -> MidoOut:
    """A port that the model's messages go to; see `InPort`.

    Raises:
        PortError: if it can't be opened.
    """
    name = name if virtual else chosen(name, port_names()[1], "--midi_out")
    with _Explained(f"{name} can't be opened"):
        return MidoOut(_mido().open_output(name, virtual=virtual), name)


def channel_messages(port: Any) -> Iterator[tuple[int, ...]]:
    """Bytes of the messages of channels that wait in a port of mido's.

    Raises:
        OSError: if the other end has closed it.
    """
    for message in port.iter_pending():
        values = tuple(message.bytes())
        if values[0] < 0xF0:
            yield values
    if port.closed:
        raise OSError("the other end has closed it")


def chosen(name: str, names: list[str], option: str) -> str:
    """The port that a name, or a part of it, means.

    Raises:
        PortError: if none does, or several do.
    """
    found = [each for each in names if each == name] or [each for each in names if name.lower() in each.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise PortError(f"{option} {name!r} may be {' or '.join(map(repr, found))}: give more of the name")
    there = f"there are {', '.join(map(repr, names))}" if names else "there is none: connect a device, or use --virtual"
    raise PortError(f"{option} {name!r} is no MIDI port{did_you_mean(name, names, there)}")


def _mido() -> Any:
    try:
        import mido
        import rtmidi  # noqa: F401  mido finds it by itself, and says little if it is missing
    except ImportError as error:
        raise PortError('MIDI ports need packages that are not installed: pip install "pianogen_hf[live]"') from error
    return mido


class _Explained:
    """Says in one line what python-rtmidi raises, which is of many kinds."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, PianogenError):
            why = one_line(error) or type(error).__name__
            raise PortError(f"{self.what} ({why}): MIDI ports need ALSA, CoreMIDI or Windows") from error
