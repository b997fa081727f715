"""Click logs: CSV, TSV or Parquet of events, described by a schema, turned into a prepared data set."""

from lain.formats.log.schema import LogSchema, load_schema
from lain.formats.log.write import prepare_log

__all__ = ["LogSchema", "load_schema", "prepare_log"]
