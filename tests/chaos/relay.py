# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``shell`` of a node or pooler in place of ssh: whoever kills this process cuts the connection, whoever stops it partitions it.

Usage: relay.py FILE PROGRAM [ARGUMENT...]; appends "RELAY'S-PID PROGRAM'S-PID" to the file. The program outlives this process.
"""

import os
import subprocess
import sys
import threading


def copy(source, sink):
    while True:
        try:
            data = os.read(source, 65536)
            if not data:
                break
            while data:
                data = data[os.write(sink, data) :]
        except OSError:
            break
    os.close(sink)


child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
with open(sys.argv[1], "a", encoding="ascii") as stream:
    stream.write("%d %d\n" % (os.getpid(), child.pid))
threading.Thread(target=copy, args=[0, child.stdin.fileno()], daemon=True).start()
copy(child.stdout.fileno(), 1)
os._exit(child.wait())
