"""setup: what a fresh machine lacks. The link from the environment to this project, Java, and Spark's jars.

Everything here is idempotent, and needs the network at most once.
"""

from flashlake.setup.jars import Jar, ensure_jars, locked_jars
from flashlake.setup.java import Java, find_java, spark_environment

__all__ = ["Jar", "Java", "ensure_jars", "find_java", "locked_jars", "spark_environment"]
