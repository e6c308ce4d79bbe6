"""The drop: where local commands leave mail for a worker to take up.

    DROP/limits           what the command must know: written by the supervisor
    DROP/UID/             a folder that belongs to a local account
    DROP/UID/NAME         one message, whole and on disk; its owner is who sent it
    DROP/UID/.NAME        one that is being written, where the file system needs a name

The command writes, whether or not the daemon runs, and asks the daemon to take it if
it does. So nothing is setuid, and there is one way for a message.
"""
