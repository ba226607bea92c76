// What the page of `pianogen play` begins with.

import { openPage } from "./play.js";
import { ServerSession } from "./server_session.js";

openPage(new ServerSession());
