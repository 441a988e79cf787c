"""What must run regularly, as Celery tasks: beat sends them, and any worker takes them.

`app` is the module of yours that makes the Flask app and its MythicClients. No task tries again by itself:
what a StoreError leaves stays pending, and the next beat goes on. Two runs beside each other are safe.
"""

import os
from collections import Counter
from datetime import timedelta

from app import clients, create_app
from celery import Celery
from celery.schedules import crontab
from celery.utils.log import get_task_logger

from flask_mythic_clients.model import Result

logger = get_task_logger(__name__)
flask_app = create_app()
celery = Celery("clients", broker=os.environ["CELERY_BROKER_URL"])
celery.conf.update(
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    # One that hangs would keep a worker from all others. To be ended is safe at any moment.
    task_time_limit=4 * 3600,
    beat_schedule={
        # What no worker took in time is dropped, or all of it would be waiting when the workers are back.
        "reconcile": {"task": "clients.reconcile", "schedule": 60, "options": {"expires": 60}},
        "purge": {
            "task": "clients.purge",
            "schedule": crontab(hour="3", minute="17"),
            "options": {"expires": 3600},
        },
        "forget": {
            "task": "clients.forget",
            "schedule": crontab(hour="3", minute="47", day_of_week="0"),
            "options": {"expires": 3600},
        },
    },
)


@celery.task(name="clients.reconcile", time_limit=600)
def reconcile() -> None:
    """Settle all that is pending, verify all that is due."""
    with flask_app.app_context():
        done = clients.service.reconcile()
    if done.failed or done.blind:
        logger.error("%s. Look at `flask mythic-clients status`.", done)


@celery.task(name="clients.purge")
def purge(days: int = 30) -> None:
    """Remove for good the clients that were soft-deleted so many days ago."""
    counts = Counter[Result]()
    with flask_app.app_context():
        # Nothing is done until it is asked for what came of it.
        for outcome in clients.service.purge(older_than=timedelta(days=days), actor="celery"):
            counts[outcome.result] += 1
            if outcome.result is Result.FAILED:
                logger.error("%s: %s", outcome.client_id, outcome.cause)
    logger.info("Removed %d, failed %d.", counts[Result.DONE], counts[Result.FAILED])


@celery.task(name="clients.forget")
def forget(days: int = 400) -> None:
    """Delete the deletion records that were verified so many days ago."""
    with flask_app.app_context():
        number = sum(clients.service.forget(older_than=timedelta(days=days)))
    logger.info("Deleted %d records.", number)
