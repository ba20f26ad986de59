"""Spark in a process of its own, whose JVM ends before it does: what it answers to questions about runs.

Its argument is JSON: ``runs`` (by name, the folder of each), ``tables``, ``questions`` (by name, SQL), ``recipe`` (code
with a Spark session named ``spark``), and ``answers`` (the folder for one Parquet file a run and question).
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark import SparkContext
from pyspark.sql import SparkSession


def answer(spark: SparkSession, asked: dict[str, Any]) -> None:
    """Put the questions about every run, then run the recipe."""
    spark.conf.set("spark.sql.parquet.enableVectorizedReader", False)
    for name, run in asked["runs"].items():
        for table in asked["tables"]:
            spark.read.option("mergeSchema", True).parquet(f"{run}/{table}").createOrReplaceTempView(table)
        for question, sql in asked["questions"].items():
            pq.write_table(spark.sql(sql).toArrow(), Path(asked["answers"]) / f"{name}-{question}.parquet")
    spark.conf.unset("spark.sql.parquet.enableVectorizedReader")
    exec(asked["recipe"], {"spark": spark})


def main(asked: dict[str, Any]) -> None:
    """Start Spark, answer, and wait for its JVM to end."""
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.codegen.wholeStage": "false",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    }
    spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    jvm = SparkContext._gateway.proc
    try:
        answer(spark, asked)
    finally:
        spark.stop()
        jvm.stdin.close()
        jvm.wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
