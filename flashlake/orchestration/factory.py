"""Factory: one .sql definition becomes one Dagster asset.

A source (no INSERT fills it) becomes an external asset: rows come from outside, the journal sensor reports its days.
A derived table becomes an asset with one check. Materializing some of its days recomputes them by batch over the recorded
input offsets, compares row by row with what the stream wrote, and repairs what differs. The check is that proof.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import dagster as dg

from flashlake.orchestration.policies import AssetPolicy
from flashlake.orchestration.tables import TableDefinition, output_columns
from flashlake.orchestration.warehouse import RESOURCE_KEY, Proof, Warehouse
from storage_engine.errors import FlashlakeError, UserError

CHECK_NAME = "batch_equals_stream"
POOL = "warehouse"


def asset_key(table: str) -> dg.AssetKey:
    """The asset key of a table.

    >>> asset_key("dws.store_hour_wide").path
    ['dws', 'store_hour_wide']
    """
    return dg.AssetKey(table.split("."))


def table_name(key: dg.AssetKey) -> str:
    """The table of an asset key: its parts, joined by dots."""
    return ".".join(key.path)


def asset_of(definition: TableDefinition, schemas: Mapping[str, Mapping[str, str]], start: date) -> dg.AssetSpec | dg.AssetsDefinition:
    """The asset of a definition: an external one for a source, an executable one for a derived table.

    schemas  table -> column -> SQL type, for column lineage; start: first day where the table names none.
    """
    spec = asset_spec(definition, schemas, start)
    return derived_asset(definition, spec) if definition.is_derived else spec


def asset_spec(definition: TableDefinition, schemas: Mapping[str, Mapping[str, str]], start: date) -> dg.AssetSpec:
    """What Dagster knows of a table: inputs, partitions from `start` on, freshness, owners, columns with their lineage."""
    policy = definition.policy
    return dg.AssetSpec(
        asset_key(definition.name),
        deps=[asset_key(table) for table in definition.reads],
        description=_description(definition),
        group_name=policy.group or definition.layer,
        owners=list(policy.owners),
        kinds=_kinds(definition),
        partitions_def=day_partitions(policy, start),
        freshness_policy=_freshness(policy),
        metadata=_static_metadata(definition, schemas),
        tags={"flashlake/layer": definition.layer},
    )


def derived_asset(definition: TableDefinition, spec: dg.AssetSpec) -> dg.AssetsDefinition:
    """The executable asset of a derived table, with its check; either can be run alone."""
    check = dg.AssetCheckSpec(
        CHECK_NAME,
        asset=spec.key,
        description="The SQL, recomputed by batch over the recorded input offsets, equals row by row what the stream wrote.",
    )
    per_run = definition.policy.partitions_per_run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill policies are beta in name only; the pinned release is tested
        backfill = None
        if spec.partitions_def is not None:
            backfill = dg.BackfillPolicy.single_run() if per_run is None else dg.BackfillPolicy.multi_run(per_run)

    @dg.multi_asset(
        name=spec.key.to_python_identifier(),
        specs=[spec],
        check_specs=[check],
        can_subset=True,
        partitions_def=spec.partitions_def,
        backfill_policy=backfill,
        required_resource_keys={RESOURCE_KEY},
        pool=POOL,
    )
    def materialize(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        warehouse: Warehouse = getattr(context.resources, RESOURCE_KEY)
        partitions = tuple(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else ()
        try:
            is_seal = spec.key in context.selected_asset_keys
            proof, n_repaired = (
                _seal(context, warehouse, definition.name, partitions) if is_seal else (warehouse.verify(definition.name, partitions), 0)
            )
            if is_seal:
                columns = _column_schema(definition, warehouse.column_types(definition.name))
                lineage = {key: value for key, value in spec.metadata.items() if key == "dagster/column_lineage"}
                metadata = {**proof_metadata(proof, n_repaired), **lineage, "dagster/column_schema": columns}
                if len(proof.n_rows_of) > 1:  # one result for the range; the rows are told for each of its days
                    metadata["rows_in_range"] = metadata.pop("dagster/row_count")
                    for partition, n_rows in proof.n_rows_of.items():
                        context.add_asset_metadata({"dagster/row_count": n_rows}, asset_key=spec.key, partition_key=partition)
                yield dg.MaterializeResult(asset_key=spec.key, metadata=metadata)
        except FlashlakeError as error:
            raise dg.Failure(
                description=str(error), metadata={"where": error.where, "next_step": error.next_step}, allow_retries=False
            ) from error
        if check.key in context.selected_asset_check_keys:
            yield check_result(check, proof, n_repaired)

    return materialize


def _seal(context: dg.AssetExecutionContext, warehouse: Warehouse, table: str, partitions: Sequence[str]) -> tuple[Proof, int]:
    proof = warehouse.verify(table, partitions)
    if proof.holds:
        context.log.info(f"{table}: {proof.n_compared} rows compared at version {proof.version}, none differs")
        return proof, 0
    if proof.refused:
        context.log.error(f"{table}: {proof.refused}; nothing was repaired")
        return proof, 0
    context.log.warning(f"{table}: {proof.n_differing} of {proof.n_compared} rows differ at version {proof.version}; repairing")
    try:
        n_repaired = warehouse.repair(table, partitions)
    except UserError as refusal:  # the check fails, and says which rows and why they stay
        context.log.error(str(refusal))
        return replace(proof, notes=(*proof.notes, str(refusal))), 0
    return warehouse.verify(table, partitions), n_repaired


def proof_metadata(proof: Proof, n_repaired: int) -> dict[str, Any]:
    """Numbers with stable names: Dagster plots them over the partitions."""
    return {
        "dagster/row_count": proof.n_rows,
        "rows_compared": proof.n_compared,
        "rows_differing": proof.n_differing,
        "rows_repaired": n_repaired,
        "store_version": proof.version,
        "partitions": len(proof.partitions),
        "first_partition": min(proof.partitions, default=""),
        "last_partition": max(proof.partitions, default=""),
        "pipelines": ", ".join(proof.pipelines),
    }


def check_result(check: dg.AssetCheckSpec, proof: Proof, n_repaired: int) -> dg.AssetCheckResult:
    """Passed when both computations agree now. A repair before that is told in the metadata: it passed, but not by itself.

    What could not be computed, or has no row at all, has not passed; it is a warning: no row is known to be wrong.
    """
    metadata = proof_metadata(proof, n_repaired)
    if proof.sample:
        metadata["sample"] = dg.MetadataValue.json({"rows": [{key: str(value) for key, value in row.items()} for row in proof.sample]})
    if proof.notes:
        metadata["notes"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in proof.notes))
    outcome = "agree" if proof.holds else proof.refused or f"{proof.n_differing} rows differ"
    repaired = f" after a repair of {n_repaired}" if n_repaired else ""
    return dg.AssetCheckResult(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=proof.holds,
        severity=dg.AssetCheckSeverity.WARN if proof.refused and not proof.n_differing else dg.AssetCheckSeverity.ERROR,
        description=f"{proof.n_compared} rows compared at version {proof.version}: {outcome}{repaired}",
        metadata=metadata,
    )


def day_partitions(policy: AssetPolicy, start: date) -> dg.DailyPartitionsDefinition | None:
    """One partition per day (UTC) since the start; a day becomes a partition when it is over."""
    if policy.day_column is None:
        return None
    return dg.DailyPartitionsDefinition(start_date=(policy.start or start).isoformat(), timezone="UTC")


def _freshness(policy: AssetPolicy) -> dg.FreshnessPolicy | None:
    if policy.freshness is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=policy.freshness, warn_window=policy.freshness / 2)


def _kinds(definition: TableDefinition) -> set[str]:
    kinds = {"sql", *definition.policy.kinds} if definition.is_derived else {"table", *definition.policy.kinds}
    if definition.is_tiered:
        kinds.add("deltalake")
    return kinds


def _description(definition: TableDefinition) -> str:
    pipelines = (f"Pipeline `{pipeline.name}`:\n\n```sql\n{pipeline.select_sql.strip()}\n```" for pipeline in definition.pipelines)
    return "\n\n".join([definition.comment or definition.name, *pipelines])


def _static_metadata(definition: TableDefinition, schemas: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/table_name": definition.name,
        "dagster/column_schema": _column_schema(definition, schemas.get(definition.name, {})),
        "definition": dg.MetadataValue.path(f"assets/{definition.layer}/{definition.path.name}"),
    }
    if definition.descriptor is not None and definition.descriptor.has_primary_key:
        metadata["primary_key"] = ", ".join(definition.descriptor.primary_key)
    lineage = output_columns(definition, {table: dict(columns) for table, columns in schemas.items()})
    deps = {
        column: [dg.TableColumnDep(asset_key=asset_key(source.table), column_name=source.column) for source in sources]
        for column, sources in lineage.items()
        if sources
    }
    if deps:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(deps_by_column=deps)
    return metadata


def _column_schema(definition: TableDefinition, types: Mapping[str, str]) -> dg.TableSchema:
    """The columns that the table has (`types`, as they are in the store), described by its definition where that still names them."""
    descriptor = definition.descriptor
    if descriptor is None:
        return dg.TableSchema([dg.TableColumn(name, type=kind) for name, kind in types.items()])
    written = {column.name: column for column in descriptor.columns}
    columns = []
    for name, kind in (types or {column.name: column.type for column in descriptor.columns}).items():
        column = written.get(name)
        nullable, unique = (True, False) if column is None else (column.nullable, descriptor.primary_key == (name,))
        constraints = dg.TableColumnConstraints(nullable=nullable, unique=unique)
        comment = None if column is None else column.comment or None
        columns.append(dg.TableColumn(name, type=kind, description=comment, constraints=constraints))
    return dg.TableSchema(columns)
