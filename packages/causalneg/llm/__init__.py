"""Language models behind one protocol: chats, answers, engines."""
