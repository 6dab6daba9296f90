from .torch_model import Classification, TorchModel

__all__ = ['Classification', 'TorchModel']
