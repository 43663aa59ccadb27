//! Sockets: accept, handshake, limits, drain.
