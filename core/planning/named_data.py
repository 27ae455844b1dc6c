"""The records that a config names, of files and of plugins' generators. Torch-free."""

from __future__ import annotations

import sys
from pathlib import Path

from core.data.building import build_dataset
from core.data.dataset import Dataset
from core.data.formats import formats_of
from core.data.transforming import bind_transforms
from core.errors import ConfigError, PluginError
from core.files import atomic_folder, cache_dir
from core.platform.providers import Providers
from core.platform.registry import Registry
from core.platform.specs import DataSourceSpec
from core.proof import seal_fault, seal_folder
from core.settings.schema import RunConfig
from core.suggest import did_you_mean


def dataset_for(cfg: RunConfig, schema: str, registry: Registry, providers: Providers | None = None) -> Dataset:
    """The records that a config names, as `schema`, filtered, augmented and mixed as it says.

    providers: counts what data sources and transforms take.
    """
    providers = providers or Providers()
    transforms = bind_transforms(cfg.data.transforms, registry, providers)
    places = _places(cfg, registry, providers)
    return build_dataset(cfg.data, places, schema, cfg.runtime.seed, transforms, formats_of(registry))


def _places(cfg: RunConfig, registry: Registry, providers: Providers) -> Path | dict[str, Path]:
    """The file or folder that the data config names; for a mixture that of each source."""
    if cfg.data.mixture:
        return {
            name: _place(source.path, source.source, f"data.mixture.{name}", cfg, registry, providers)
            for name, source in cfg.data.mixture.items()
        }
    return _place(cfg.data.path, cfg.data.source, "data", cfg, registry, providers)


def _place(
    path: str | None, source: str | None, key: str, cfg: RunConfig, registry: Registry, providers: Providers
) -> Path:
    """A file or folder; a generator's rows are written once into the cache."""
    if path:
        return Path(path).expanduser()
    if not source:
        raise ConfigError("no data is named", key, f"set {key}.path=FILE or data=demo")
    if source not in registry.data_sources:
        known = sorted(registry.data_sources)
        what = f"there is no data source '{source}'{did_you_mean(source, known)}"
        raise ConfigError(what, f"{key}.source", f"choose one of: {', '.join(known)}")
    return _generated(registry.data_sources[source].spec, cfg.runtime.seed, registry, providers)


def _generated(source: DataSourceSpec, seed: int, registry: Registry, providers: Providers) -> Path:
    folder = cache_dir() / "data" / f"{source.name}-{source.version}-{seed}"
    fault = seal_fault(folder) if folder.is_dir() else ""
    if fault:
        sys.stderr.write(f"warning: the data of '{source.name}' is generated anew: {fault}\n")
    if fault is not None:
        write = registry.resolve(source)
        with atomic_folder(folder) as part, providers.at(registry.owner_of(source), f"'{source.impl}'"):
            write(part, seed)
        if not any(folder.iterdir()):
            raise PluginError(f"the data source '{source.name}' wrote no file", source.impl)
        seal_folder(folder)
    return folder
