# What is named here is exported, loaded when first used, known to the Auto classes (registration.py) and tested.
# Editors and type checkers read it, too.
from .generation.continuation import continue_notes as continue_notes
from .generation.continuation import end_notes as end_notes
from .generation.continuation import extend_notes as extend_notes
from .generation.filling import fill_notes as fill_notes
from .generation.harmonising import harmonise_notes as harmonise_notes
from .generation.note_verbs import accompany_notes as accompany_notes
from .generation.varying import vary_notes as vary_notes
from .models.configuration_chorale_transformer import ChoraleTransformerConfig as ChoraleTransformerConfig
from .models.configuration_continuous_notes import ContinuousNotesConfig as ContinuousNotesConfig
from .models.configuration_midi_event import MidiEventConfig as MidiEventConfig
from .models.configuration_multitrack_music import MultitrackMusicConfig as MultitrackMusicConfig
from .models.configuration_music_transformer import MusicTransformerConfig as MusicTransformerConfig
from .models.configuration_note_transformer import NoteTransformerConfig as NoteTransformerConfig
from .models.configuration_piano_encoder import PianoEncoderConfig as PianoEncoderConfig
from .models.modeling_chorale_transformer import ChoraleTransformerForCausalLM as ChoraleTransformerForCausalLM
from .models.modeling_chorale_transformer import ChoraleTransformerModel as ChoraleTransformerModel
from .models.modeling_continuous_notes import ContinuousNotesForCausalLM as ContinuousNotesForCausalLM
from .models.modeling_continuous_notes import ContinuousNotesModel as ContinuousNotesModel
from .models.modeling_midi_event import MidiEventForCausalLM as MidiEventForCausalLM
from .models.modeling_multitrack_music import MultitrackMusicForCausalLM as MultitrackMusicForCausalLM
from .models.modeling_multitrack_music import MultitrackMusicModel as MultitrackMusicModel
from .models.modeling_music_transformer import MusicTransformerForCausalLM as MusicTransformerForCausalLM
from .models.modeling_music_transformer import MusicTransformerModel as MusicTransformerModel
from .models.modeling_note_transformer import NoteTransformerForCausalLM as NoteTransformerForCausalLM
from .models.modeling_note_transformer import NoteTransformerModel as NoteTransformerModel
from .models.modeling_piano_encoder import PianoEncoderForCausalLM as PianoEncoderForCausalLM
from .models.modeling_piano_encoder import PianoEncoderForMaskedLM as PianoEncoderForMaskedLM
from .models.modeling_piano_encoder import PianoEncoderModel as PianoEncoderModel
from .tokenizers.feature_extraction_continuous_notes import (
    ContinuousNotesFeatureExtractor as ContinuousNotesFeatureExtractor,
)
from .tokenizers.midi import MidiError as MidiError
from .tokenizers.midi import notes_to_midi_bytes as notes_to_midi_bytes
from .tokenizers.midi import read_midi as read_midi
from .tokenizers.midi import write_midi as write_midi
from .tokenizers.notes import Notes as Notes
from .tokenizers.tokenization_craykh import CrayKHTokenizer as CrayKHTokenizer
from .tokenizers.tokenization_jsb import JSBTokenizer as JSBTokenizer
from .tokenizers.tokenization_midi_event import MidiEventTokenizer as MidiEventTokenizer
from .tokenizers.tokenization_multitrack_music import MultitrackMusicTokenizer as MultitrackMusicTokenizer
from .tokenizers.tokenization_note_duration import NoteDurationTokenizer as NoteDurationTokenizer
from .tokenizers.tokenization_notes import NoteTokenizer as NoteTokenizer
from .tokenizers.tokenization_performance import PerformanceTokenizer as PerformanceTokenizer
from .tokenizers.tokenization_remi import RemiTokenizer as RemiTokenizer
from .workflows.loading import load_encoder as load_encoder

BACH_MODEL: str
BUNDLED_MODEL: str
PIANO_MODEL: str
__all__: list[str]
__version__: str
