"""Threads that start at the same moment."""

import threading


def together(*works):
    """Run ``works``, each on a thread of its own, from one moment on; return what they returned. What one raises is raised."""
    start, results, raised = threading.Barrier(len(works)), [None] * len(works), []

    def run(index, work):
        start.wait()
        try:
            results[index] = work()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            raised.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return results
