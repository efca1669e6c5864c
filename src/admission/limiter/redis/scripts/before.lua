-- What a rebuild starts from: what is published, and this server's line of data.
return { 'before', redis.call('GET', KEYS[1]) or '', line() }
