"""Who a message is really from: SPF, DKIM, ARC, DMARC, and signatures of our own."""
