# What is named here is exported, loaded when first used, known to the Auto classes (registration.py) and tested.
# Editors and type checkers read it, too.
from .models.configuration_continuous_notes import ContinuousNotesConfig
from .models.configuration_music_transformer import MusicTransformerConfig
from .models.configuration_piano_encoder import PianoEncoderConfig
from .models.modeling_continuous_notes import ContinuousNotesForCausalLM, ContinuousNotesModel
from .models.modeling_music_transformer import MusicTransformerForCausalLM, MusicTransformerModel
from .models.modeling_piano_encoder import PianoEncoderForCausalLM, PianoEncoderForMaskedLM, PianoEncoderModel
from .tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from .tokenizers.midi import MidiError, notes_to_midi_bytes, read_midi, write_midi
from .tokenizers.notes import Notes
from .tokenizers.tokenization_craykh import CrayKHTokenizer
from .tokenizers.tokenization_jsb import JSBTokenizer
from .tokenizers.tokenization_notes import NoteTokenizer
from .tokenizers.tokenization_performance import PerformanceTokenizer
from .tokenizers.tokenization_remi import RemiTokenizer

BUNDLED_MODEL: str
__version__: str

__all__ = [
    "BUNDLED_MODEL",
    "ContinuousNotesConfig",
    "ContinuousNotesFeatureExtractor",
    "ContinuousNotesForCausalLM",
    "ContinuousNotesModel",
    "CrayKHTokenizer",
    "JSBTokenizer",
    "MidiError",
    "MusicTransformerConfig",
    "MusicTransformerForCausalLM",
    "MusicTransformerModel",
    "NoteTokenizer",
    "Notes",
    "PerformanceTokenizer",
    "PianoEncoderConfig",
    "PianoEncoderForCausalLM",
    "PianoEncoderForMaskedLM",
    "PianoEncoderModel",
    "RemiTokenizer",
    "notes_to_midi_bytes",
    "read_midi",
    "write_midi",
]
