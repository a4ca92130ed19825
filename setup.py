"""Package metadata of sr_bigbatch; tool settings are in pyproject.toml."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'sr_bigbatch' / '__init__.py').read_text())[1]

setup(
    name='sr-bigbatch',
    version=VERSION,
    description='Train super-resolution GANs at batch sizes that do not fit on the GPU: a plugin for BasicSR and mmengine',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='super-resolution, ESRGAN, gradient accumulation, activation checkpointing, BasicSR, mmengine',
    packages=[*find_packages(include=['sr_bigbatch', 'sr_bigbatch.*']), 'sr_bigbatch.shipped_options'],
    package_dir={'sr_bigbatch.shipped_options': 'options'},
    package_data={'sr_bigbatch': ['py.typed'], 'sr_bigbatch.shipped_options': ['*.yml', 'mmengine/*.py']},
    entry_points={'console_scripts': ['sr-bigbatch = sr_bigbatch.cli:main']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.6', 'torchvision>=0.21', 'basicsr>=1.4.2', 'mmengine>=0.10.7,<0.11', 'opencv-python>=4.8', 'numpy>=1.26',
        'lmdb>=1.4', 'safetensors>=0.4', 'jsonschema>=4.20', 'addict>=2.4', 'yapf>=0.40', 'PyYAML>=6.0', 'tqdm>=4.66',
        'tensorboard>=2.14', 'matplotlib>=3.8', 'scikit-image>=0.22',
    ],
    extras_require={'export': ['onnx>=1.16', 'onnxscript>=0.5'],
                    'test': ['pytest>=8', 'pytest-xdist>=3.6', 'hypothesis>=6.100', 'spandrel>=0.4',
                             'lightning>=2.5', 'accelerate>=1.4'],
                    'dev': ['ruff>=0.6', 'mypy>=1.11', 'pre-commit>=3.5', 'types-PyYAML', 'types-jsonschema']},
    classifiers=['Development Status :: 3 - Alpha', 'Operating System :: OS Independent',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Image Processing'],
)
