"""What the fork server imports once, so that a trial starts in milliseconds. Imports only: nothing is run before the fork."""

import warnings

with warnings.catch_warnings(action="ignore"):  # modelopt's about versions; a trial's own log has it where it matters
    import modelopt.torch.quantization
    import onnx_ir
    import onnxruntime
    import torch
    import transformers

    import openclaw_opt.sweep.trial

__all__ = ["modelopt", "onnx_ir", "onnxruntime", "openclaw_opt", "torch", "transformers"]
