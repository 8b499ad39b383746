"""Where the readers were; they are in `megatron_native.documents` now."""

from megatron_native.documents.inputs import check_line_limit, expand_inputs
from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Document, Refusal

__all__ = ["Document", "Refusal", "check_line_limit", "expand_inputs", "read_documents"]
